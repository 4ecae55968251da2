"""Looks at one queue and its store the way an expert would: what there is, and what to think of it."""

from cbq_exporter.services.doctor.examination import Examination, examine
from cbq_exporter.services.doctor.findings import Finding, Severity
from cbq_exporter.services.doctor.judgement import judge

__all__ = ["Examination", "Finding", "Severity", "examine", "judge"]
