"""Audits on disk: signed, checked when they are read, and shown with the runs that they are of."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fedveil.privacy.audit.result import AuditResult, build_audit
from fedveil.server.run_folder import RunFolder
from fedveil.server.run_info import replace_text
from fedveil.server.signed import SignedFileError, read_signed, signed_text
from fedveil.server.storage import own_signing_key
from fedveil.vault.signing import VerifyKey

__all__ = ["AUDIT_NAME", "audit_of", "read_audit", "write_audit"]

AUDIT_NAME = "audit.json"
_LABEL = b"fedveil/audit/1\n"


def write_audit(path: Path, result: AuditResult) -> None:
    """Write an audit, signed with this machine's signing key.

    Raises
    ------
    RunFolderError
        If it cannot be written.
    """
    replace_text(path, signed_text(result.model_dump(mode="json"), _LABEL, own_signing_key()))


def read_audit(path: Path, signer: VerifyKey | None = None) -> AuditResult:
    """Read an audit, check its signature, and compute its bounds anew.

    Parameters
    ----------
    path : Path
        The file.
    signer : VerifyKey, optional
        Whose signature counts; by default this machine's own.

    Raises
    ------
    SignedFileError
        If it is no audit, or its figures do not follow from its guesses.
    SignatureError
        If it was signed by somebody else, or changed.
    """
    fields = read_signed(path, _LABEL, signer)
    try:
        found = AuditResult.model_validate(fields)
    except ValidationError:
        raise SignedFileError(f"{path}: is not an audit that this version reads") from None
    if build_audit(found.facts, {a.name: a.found for a in found.attacks}) != found:
        raise SignedFileError(f"{path}: its bounds do not follow from its guesses")
    return found


def audit_of(folder: RunFolder) -> AuditResult | None:
    """Return the audit in a run folder, if there is one of the run's own settings.

    Raises
    ------
    FedveilError
        If there is a file in its place that is no audit, or was changed.
    """
    path = folder.path / AUDIT_NAME
    if not path.exists():
        return None
    found = read_audit(path, VerifyKey.from_text(folder.info.signer))
    is_own = found.facts.settings_sha256 == folder.info.config_sha256
    return found if is_own and not found.facts.control else None
