"""A KEK in AWS KMS: ``aws:KEY``."""

from __future__ import annotations

import logging
import re
from typing import ClassVar

import boto3
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnectedError

from fedveil.vault.errors import KekError, TamperedError, WrongKeyError
from fedveil.vault.kek.address import check_address
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.sealing import check_secret, check_unwrapped, check_wrapped

__all__ = ["AwsKek", "open_aws"]

_ALGORITHM = "SYMMETRIC_DEFAULT"
_KEY = re.compile(r"[A-Za-z0-9:/_-]{1,256}")
_ARN = re.compile(r"arn:[a-z0-9-]+:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:(?P<kind>key|alias)/.+")
_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_UNUSABLE = {"DisabledException", "KMSInvalidStateException"}


class AwsKek:
    """Wraps with a symmetric KMS key that never leaves the service.

    The context stands, in hexadecimal, in the encryption context under ``fedveil``; CloudTrail
    shows it. Every request names the key by its ARN. `rewrap` is KMS's ReEncrypt: the secret does
    not leave the service.

    Parameters
    ----------
    key : str
        ARN or id of a key, or ARN or name of an alias (``alias/...``).
    client : botocore.client.BaseClient
        A client of KMS.

    Raises
    ------
    KekError
        If the key is none of these, or the client would send secrets in clear.
    """

    name: ClassVar[str] = "aws"

    def __init__(self, key: str, client: BaseClient) -> None:
        if not _KEY.fullmatch(key):
            raise KekError(
                "aws: needs the id or ARN of a KMS key, or an alias, for example aws:alias/fedveil"
            )
        check_address(client.meta.endpoint_url, "the endpoint of AWS KMS")
        self._key = key
        self._client = client
        arn = _ARN.fullmatch(key)
        self._arn = key if arn is not None and arn["kind"] == "key" else None

    @property
    def key_id(self) -> str:
        """ARN of the key; KMS is asked for it once, unless the key was named by it.

        Raises
        ------
        KekError
            If KMS does not say.
        """
        if self._arn is None:
            # An alias can be pointed elsewhere; what it means now is settled here, once.
            found = self._ask("describe_key", KeyId=self._key).get("KeyMetadata")
            arn = found.get("Arn") if isinstance(found, dict) else None
            if not isinstance(arn, str) or not _ARN.fullmatch(arn):
                raise KekError(f"AWS KMS does not say which key {self._key!r} is")
            self._arn = arn
        return self._arn

    def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
        """Encrypt a secret of 32 bytes; see `KekProvider.wrap`."""
        check_secret(secret)
        answer = self._ask(
            "encrypt",
            KeyId=self.key_id,
            Plaintext=secret,
            EncryptionContext=_encryption_context(context),
            EncryptionAlgorithm=_ALGORITHM,
        )
        return WrappedKey(self.name, self.key_id, _bytes(answer, "CiphertextBlob"), {})

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Return the secret that `wrap` was given; see `KekProvider.unwrap`."""
        check_wrapped(wrapped, self.name, self.key_id)
        answer = self._ask(
            "decrypt",
            KeyId=self.key_id,
            CiphertextBlob=wrapped.blob,
            EncryptionContext=_encryption_context(context),
            EncryptionAlgorithm=_ALGORITHM,
        )
        return check_unwrapped(_bytes(answer, "Plaintext"))

    def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        """Have KMS wrap the same secret under the key's newest material; see `unwrap`."""
        check_wrapped(wrapped, self.name, self.key_id)
        answer = self._ask(
            "re_encrypt",
            CiphertextBlob=wrapped.blob,
            SourceKeyId=self.key_id,
            SourceEncryptionContext=_encryption_context(context),
            SourceEncryptionAlgorithm=_ALGORITHM,
            DestinationKeyId=self.key_id,
            DestinationEncryptionContext=_encryption_context(context),
            DestinationEncryptionAlgorithm=_ALGORITHM,
        )
        return WrappedKey(self.name, self.key_id, _bytes(answer, "CiphertextBlob"), {})

    def _ask(self, operation: str, **parameters: str | bytes | dict[str, str]) -> dict[str, object]:
        try:
            answer: dict[str, object] = getattr(self._client, operation)(**parameters)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "no code"))
            raise self._refused(operation, code) from None
        except BotoCoreError as error:
            raise _unusable(error, self._client.meta.endpoint_url) from None
        return answer

    def _refused(self, operation: str, code: str) -> KekError | TamperedError | WrongKeyError:
        key = repr(self._arn or self._key)
        if code == "InvalidCiphertextException":
            return TamperedError(
                f"the key wrapped by AWS KMS key {key} was changed, or belongs to another store; "
                "restore the file that it comes from"
            )
        if code == "IncorrectKeyException":
            return WrongKeyError(f"another AWS KMS key than {key} wrapped this; name that one")
        if code == "NotFoundException":
            return KekError(f"there is no AWS KMS key {key} in this account and region")
        if code == "AccessDeniedException":
            action = "".join(word.capitalize() for word in operation.split("_"))
            more = "From and kms:ReEncryptTo" if operation == "re_encrypt" else ""
            return KekError(f"AWS denies kms:{action}{more} with the key {key}; allow it")
        if code in _CREDENTIALS:
            return KekError(f"AWS does not accept these credentials ({code}); renew them")
        if code in _UNUSABLE:
            return KekError(f"the AWS KMS key {key} is disabled or awaits deletion; enable it")
        if code == "InvalidKeyUsageException":
            return KekError(f"the AWS KMS key {key} is not one to encrypt with symmetrically")
        return KekError(f"AWS KMS refused {operation} with the key {key}: {code!r:.60}")


def open_aws(key: str) -> AwsKek:
    """Return a KEK of AWS KMS, with the credentials and the region that boto3 finds.

    The region is that of the key's ARN, if it is named by one.

    Raises
    ------
    KekError
        If there is no region, or as `AwsKek` does. KMS is not asked yet.
    """
    # At DEBUG, botocore logs the bodies of requests and answers, the secret among them.
    logging.getLogger("botocore").setLevel(logging.INFO)
    arn = _ARN.fullmatch(key)
    try:
        client = boto3.client(
            "kms",
            region_name=arn["region"] if arn is not None else None,
            config=Config(connect_timeout=10, read_timeout=15, retries={"total_max_attempts": 3}),
        )
    except NoRegionError:
        raise KekError(
            "aws: needs a region: set AWS_DEFAULT_REGION, or name the key by its ARN"
        ) from None
    except (BotoCoreError, ValueError) as error:
        raise KekError(
            f"the settings of AWS cannot be used ({type(error).__name__}); check AWS_* and ~/.aws"
        ) from None
    return AwsKek(key, client)


def _unusable(error: BotoCoreError, endpoint: str) -> KekError:
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return KekError("there are no AWS credentials; set them as for the AWS command line")
    if isinstance(error, NotConnectedError | HTTPClientError):
        return KekError(
            f"AWS KMS cannot be reached at {endpoint} ({type(error).__name__}); check the region "
            "and the network"
        )
    return KekError(f"AWS KMS cannot be asked ({type(error).__name__}); check AWS_* and ~/.aws")


def _encryption_context(context: bytes) -> dict[str, str]:
    return {"fedveil": context.hex()}


def _bytes(answer: dict[str, object], member: str) -> bytes:
    value = answer.get(member)
    if not isinstance(value, bytes):
        raise KekError(f"the answer of AWS KMS holds no {member}")
    return value
