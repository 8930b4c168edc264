"""Audit logs: who did what, in lines that show when one of them was changed.

Importing this package imports nothing else; name the module that you need:

=========  ===================================================================================
`errors`   What is said where a log cannot be written, or does not verify.
`chain`    Lines that name the line before them.
`verify`   Whether such lines are as they were written.
`trail`    The log that a coordinator and a client keep of their runs.
=========  ===================================================================================
"""
