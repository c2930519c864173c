"""Measures whether a contender uses its reference and its prompt, or shortcuts such as length and markdown.

The entry points are ``audit`` and ``audit_files`` of :mod:`polar_rm.audit.run`.
"""
