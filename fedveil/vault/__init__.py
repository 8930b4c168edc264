"""Encryption at rest: model weights reach a disk only as authenticated ciphertext.

The room knows no Flower and no torch; arrays are numpy's. Importing this package imports
nothing else, so name the module that you need:

=============  ==================================================================================
`errors`       What a caller can meet: every error is one line and a `FedveilError`.
`buffers`      Bytes in pieces: sources, sinks, and cutting them anew.
`parallel`     Work on several threads, with the outcome of one.
`hashlist`     The digest of an encrypted stream, which takes no key.
`segments`     Where the segments of a stream lie.
`stream`       Tink's AES256-GCM-HKDF streaming encryption, bytes in and bytes out.
`files`        Durable, private files: written whole or not at all, read without surprises.
`keyfile`      A key, and the file that keeps it (0600, owner checked, no symbolic link).
`kek`          Key-encryption keys, wherever they are kept; a package with a table of its own.
`signing`      The coordinator's signature, its key file and its public half.
`tensors`      The safetensors layout, written in pieces and read without a copy.
`partial`      Single tensors out of a stream, without the rest.
`header`       The header of an encrypted file: what it says, and its canonical bytes.
`slots`        The wrap slots of a file: its data key under the model key.
`head`         All that stands before the stream of a file: header, slots, seal.
`sealing`      Writing one encrypted file.
`checkpoint`   Opening one encrypted file, or checking it without its key.
`lock`         One writer at a time.
`manifest`     ``store.json``: which run, whose signature.
`keylist`      The model key under every key-encryption key, and the code that vouches for it.
`listfile`     ``keys.json``, the file of the key list.
`destroy`      Destroying the model key, which makes every copy of a store unreadable.
`keyring`      The model key in hand: unwrapped, exchanged, its list kept up to date.
`layout`       Where the files of a store lie, which count, and which are rubbish.
`marks`        The newest round and model key that were seen of a store, kept apart from it.
`placed`       Reading a file of a store, so that every refusal names it.
`rotation`     Exchanging the model key without touching a weight.
`retention`    Which rounds are kept when old ones are removed.
`checks`       Whether the rounds are whole, in their places, and follow from one another.
`opened`       A store that was opened: its keys, its marks, how its files are reached.
`reader`       `StoreReader`: reading a store, without a lock.
`keeper`       `StoreKeeper`: its lock, its keys, which old rounds stay.
`store`        `ModelStore`: one folder of encrypted rounds, one writer, any number of readers.
`export`       The one way out: an ordinary safetensors file in plaintext.
=============  ==================================================================================

A module imports only from modules above it in that table. ``docs/vault.md`` gives the format
byte by byte and says what is not protected.
"""

__all__: list[str] = []
