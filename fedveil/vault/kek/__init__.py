"""Key-encryption keys, wherever they are kept: one interface, a module a provider.

==================  =============================================================================
`interface`         `KekProvider` and `WrappedKey`.
`sealing`           What providers share: checks, associated data, AES-256-GCM of one secret.
`address`           Services that a secret may be sent to: over https, or on this machine.
`key_file`          A key file of mode 0600 (``file:PATH``).
`passphrase_input`  Where a passphrase is read from, and the form that it is brought into.
`passphrase`        A passphrase, through Argon2id (``passphrase:``, ``passphrase:PATH``).
`hashicorp`         HashiCorp Vault's transit engine (``vault:[MOUNT/]KEY``; extra ``vault``).
`aws`               AWS KMS (``aws:KEY``; extra ``aws``).
`registry`          From such a text to a provider; entry-point group ``fedveil.kek``.
==================  =============================================================================

A module imports only from modules above it in that table. ``docs/kek.md`` says what each of them
protects from.
"""

__all__: list[str] = []
