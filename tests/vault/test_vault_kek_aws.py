import io
import logging
import socket
import traceback
from collections.abc import Iterator
from dataclasses import replace

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.client import BaseClient
from botocore.exceptions import (
    ConnectTimeoutError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
    SSLError,
)
from botocore.stub import Stubber

from fedveil.vault.errors import KekError, TamperedError, WrongKeyError
from fedveil.vault.kek.aws import AwsKek, open_aws
from fedveil.vault.kek.interface import WrappedKey

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER = ARN.replace("1234abcd", "ffffffff")
SECRET = bytes(range(32))
CONTEXT = b"context"
ENCRYPTION_CONTEXT = {"fedveil": "636f6e74657874"}
ALGORITHM = "SYMMETRIC_DEFAULT"
WRAPPED = WrappedKey("aws", ARN, b"ciphertext", {})


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-tests")


@pytest.fixture
def client() -> BaseClient:
    return boto3.client("kms")


@pytest.fixture
def kms(client: BaseClient) -> Iterator[Stubber]:
    """Answer the requests that a test expects, in order, and no other."""
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


def expect_encrypt(kms: Stubber, **answer: object) -> None:
    expected = {
        "KeyId": ARN,
        "Plaintext": SECRET,
        "EncryptionContext": ENCRYPTION_CONTEXT,
        "EncryptionAlgorithm": ALGORITHM,
    }
    kms.add_response("encrypt", {"CiphertextBlob": b"ciphertext", **answer}, expected)


def expect_decrypt(kms: Stubber, plaintext: bytes = SECRET) -> None:
    expected = {
        "KeyId": ARN,
        "CiphertextBlob": b"ciphertext",
        "EncryptionContext": ENCRYPTION_CONTEXT,
        "EncryptionAlgorithm": ALGORITHM,
    }
    kms.add_response("decrypt", {"Plaintext": plaintext, "KeyId": ARN}, expected)


def test_wrapping_sends_exactly_this(kms: Stubber) -> None:
    expect_encrypt(kms)
    assert AwsKek(ARN, kms.client).wrap(SECRET, CONTEXT) == WRAPPED


def test_unwrapping_names_the_key(kms: Stubber) -> None:
    expect_decrypt(kms)
    assert AwsKek(ARN, kms.client).unwrap(WRAPPED, CONTEXT) == SECRET


def test_rewrapping_stays_within_the_service(kms: Stubber) -> None:
    expected = {
        "CiphertextBlob": b"ciphertext",
        "SourceKeyId": ARN,
        "SourceEncryptionContext": ENCRYPTION_CONTEXT,
        "SourceEncryptionAlgorithm": ALGORITHM,
        "DestinationKeyId": ARN,
        "DestinationEncryptionContext": ENCRYPTION_CONTEXT,
        "DestinationEncryptionAlgorithm": ALGORITHM,
    }
    kms.add_response("re_encrypt", {"CiphertextBlob": b"new"}, expected)
    again = AwsKek(ARN, kms.client).rewrap(WRAPPED, CONTEXT)
    assert again == replace(WRAPPED, blob=b"new")


@pytest.mark.parametrize(
    "key",
    [
        "1234abcd-12ab-34cd-56ef-1234567890ab",
        "alias/fedveil",
        "arn:aws:kms:eu-central-1:111122223333:alias/fedveil",
    ],
)
def test_an_alias_is_settled_once(kms: Stubber, key: str) -> None:
    metadata = {"KeyMetadata": {"KeyId": ARN.rpartition("/")[2], "Arn": ARN}}
    kms.add_response("describe_key", metadata, {"KeyId": key})
    expect_encrypt(kms)
    expect_decrypt(kms)
    kek = AwsKek(key, kms.client)
    wrapped = kek.wrap(SECRET, CONTEXT)
    assert wrapped.key_id == kek.key_id == ARN
    assert kek.unwrap(wrapped, CONTEXT) == SECRET


def test_another_key_is_named_without_a_request(kms: Stubber) -> None:
    kek = AwsKek(OTHER, kms.client)
    for act in (kek.unwrap, kek.rewrap):
        with pytest.raises(WrongKeyError, match=f"'{ARN}', not by '{OTHER}'"):
            act(WRAPPED, CONTEXT)
        with pytest.raises(WrongKeyError, match="of the provider 'file'"):
            act(replace(WRAPPED, provider="file"), CONTEXT)


def test_a_forged_name_is_refused_by_the_service(kms: Stubber) -> None:
    kms.add_client_error("decrypt", "IncorrectKeyException")
    with pytest.raises(WrongKeyError, match="another AWS KMS key"):
        AwsKek(OTHER, kms.client).unwrap(replace(WRAPPED, key_id=OTHER), CONTEXT)


@pytest.mark.parametrize("length", [1, 31, 33])
def test_a_secret_of_another_length_is_refused(kms: Stubber, length: int) -> None:
    kek = AwsKek(ARN, kms.client)
    with pytest.raises(KekError, match=f"not {length}"):
        kek.wrap(bytes(length), CONTEXT)
    expect_decrypt(kms, bytes(length))
    with pytest.raises(TamperedError, match=f"holds {length} bytes"):
        kek.unwrap(WRAPPED, CONTEXT)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("InvalidCiphertextException", TamperedError, "was changed, or belongs to another store"),
        ("NotFoundException", KekError, "there is no AWS KMS key"),
        ("AccessDeniedException", KekError, "AWS denies kms:Decrypt with the key"),
        ("DisabledException", KekError, "is disabled or awaits deletion"),
        ("KMSInvalidStateException", KekError, "is disabled or awaits deletion"),
        ("ExpiredTokenException", KekError, "does not accept these credentials"),
        ("UnrecognizedClientException", KekError, "does not accept these credentials"),
        ("InvalidKeyUsageException", KekError, "is not one to encrypt with symmetrically"),
        ("ThrottlingException", KekError, "refused decrypt .*: 'ThrottlingException'"),
        ("a\nb", KekError, r"refused decrypt .*: 'a\\nb'"),
    ],
)
def test_a_refusal_is_one_line(kms: Stubber, code: str, error: type[Exception], said: str) -> None:
    kms.add_client_error("decrypt", code, "message of the service")
    with pytest.raises(error, match=said) as caught:
        AwsKek(ARN, kms.client).unwrap(WRAPPED, CONTEXT)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_denied_actions_have_the_names_that_policies_have(kms: Stubber) -> None:
    for operation in ("encrypt", "re_encrypt", "describe_key"):
        kms.add_client_error(operation, "AccessDeniedException")
    kek = AwsKek(ARN, kms.client)
    with pytest.raises(KekError, match="kms:Encrypt with"):
        kek.wrap(SECRET, CONTEXT)
    with pytest.raises(KekError, match="kms:ReEncryptFrom and kms:ReEncryptTo with"):
        kek.rewrap(WRAPPED, CONTEXT)
    with pytest.raises(KekError, match="kms:DescribeKey with the key 'alias/x'"):
        _ = AwsKek("alias/x", kms.client).key_id


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoCredentialsError(), "there are no AWS credentials"),
        (ConnectTimeoutError(endpoint_url="x"), r"cannot be reached at https://kms\.eu-central-1"),
        (ReadTimeoutError(endpoint_url="x"), r"cannot be reached at https://kms\.eu-central-1"),
        (SSLError(endpoint_url="x", error="y"), r"cannot be reached at .* \(SSLError\)"),
        (ParamValidationError(report="bad"), r"cannot be asked \(ParamValidationError\)"),
    ],
)
def test_a_service_that_cannot_be_asked_is_one_line(
    client: BaseClient, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(client, "encrypt", fail)
    with pytest.raises(KekError, match=said):
        AwsKek(ARN, client).wrap(SECRET, CONTEXT)


def test_a_service_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(KekError, match=rf"at {endpoint} \(EndpointConnectionError\)"):
            open_aws(ARN).wrap(SECRET, CONTEXT)


def test_an_answer_without_what_was_asked_for_is_refused(kms: Stubber) -> None:
    kms.add_response("encrypt", {})
    kms.add_response("decrypt", {})
    kms.add_response("describe_key", {})
    kek = AwsKek(ARN, kms.client)
    with pytest.raises(KekError, match="holds no CiphertextBlob"):
        kek.wrap(SECRET, CONTEXT)
    with pytest.raises(KekError, match="holds no Plaintext"):
        kek.unwrap(WRAPPED, CONTEXT)
    with pytest.raises(KekError, match="does not say which key 'alias/x' is"):
        _ = AwsKek("alias/x", kms.client).key_id


@pytest.mark.parametrize("key", ["", "alias/a b", "x" * 257, "key\n", "schlüssel"])
def test_what_is_no_key_is_refused(client: BaseClient, key: str) -> None:
    with pytest.raises(KekError, match="needs the id or ARN of a KMS key"):
        AwsKek(key, client)


def test_a_service_that_is_asked_in_clear_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://kms.example.org")
    with pytest.raises(KekError, match=r"endpoint of AWS KMS is http://kms\.example\.org"):
        open_aws(ARN)


def test_the_region_is_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert open_aws(ARN)._client.meta.region_name == "eu-central-1"
    assert open_aws("alias/fedveil")._client.meta.region_name == "us-west-2"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(KekError, match="needs a region: set AWS_DEFAULT_REGION"):
        open_aws("alias/fedveil")


def test_settings_that_cannot_be_used_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(KekError, match=r"cannot be used \(ProfileNotFound\)"):
        open_aws(ARN)


def test_nothing_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Even where the program logs everything: botocore then logs what it sends and receives."""
    answers = {
        "Encrypt": b'{"CiphertextBlob": "Y2lwaGVydGV4dA=="}',
        "Decrypt": b'{"Plaintext": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}',
    }

    def answer(request: object, **_: object) -> AWSResponse:
        target = request.headers["X-Amz-Target"].decode()  # type: ignore[attr-defined]
        content = answers[target.rpartition(".")[2]]
        raw = io.BytesIO(content)
        raw.stream = lambda: iter([content])  # type: ignore[attr-defined]
        return AWSResponse("https://kms", 200, {}, raw)

    with caplog.at_level(logging.DEBUG):
        kek = open_aws(ARN)
        kek._client.meta.events.register("before-send.kms", answer)
        wrapped = kek.wrap(SECRET, CONTEXT)
        assert kek.unwrap(wrapped, CONTEXT) == SECRET
        stub = Stubber(kek._client)
        stub.add_client_error("decrypt", "InvalidCiphertextException")
        with stub, pytest.raises(TamperedError) as caught:
            kek.unwrap(wrapped, b"other")
    shown = [repr(kek), repr(wrapped), caplog.text, *traceback.format_exception(caught.value)]
    for text in shown:
        for secret in (repr(SECRET), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", SECRET.hex()):
            assert secret not in text
        assert "of-the-tests" not in text
