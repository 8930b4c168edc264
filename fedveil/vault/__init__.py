"""Encryption at rest: model weights reach a disk only as authenticated ciphertext.

The room knows no Flower and no torch; arrays are numpy's. Importing this package imports
nothing else, so name the module that you need:

=============  ==================================================================================
`errors`       What a caller can meet: every error is one line and a `FedveilError`.
`buffers`      Bytes in pieces: sources, sinks, and cutting them anew.
`stream`       Tink's AES256-GCM-HKDF streaming encryption, bytes in and bytes out.
`files`        Durable, private files: written whole or not at all, read without surprises.
`keyfile`      The key, and the file that keeps it (0600, owner checked, no symbolic link).
`tensors`      The safetensors layout, written in pieces and read without a copy.
`header`       The header of an encrypted checkpoint: what it says, and its canonical bytes.
`checkpoint`   One encrypted file: bound header, then the stream of a safetensors file.
`lock`         One writer at a time.
`manifest`     ``store.json``: which run, which key.
`layout`       Where the files of a store lie, which count, and which are rubbish.
`placed`       A checkpoint in its place: file name and header must agree.
`store`        `ModelStore`: one folder of encrypted rounds, one writer, any number of readers.
`export`       The one way out: an ordinary safetensors file in plaintext.
=============  ==================================================================================

A module imports only from modules above it in that table. ``docs/vault.md`` gives the format
byte by byte and says what is not protected.
"""

__all__: list[str] = []
