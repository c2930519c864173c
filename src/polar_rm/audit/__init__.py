"""Does a contender read its reference and its prompt, or length, markdown and other shortcuts?"""

from polar_rm.audit.run import AuditResult, audit, audit_files
from polar_rm.audit.thresholds import Thresholds

__all__ = ["AuditResult", "Thresholds", "audit", "audit_files"]
