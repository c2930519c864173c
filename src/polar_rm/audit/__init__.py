"""Does a contender read its reference and its prompt, or length, markdown and other shortcuts?

``audit`` and ``audit_files`` of :mod:`polar_rm.audit.run` ask it, and find out.
"""
