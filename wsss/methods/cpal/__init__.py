"""CPAL: context prototype-aware learning."""

from wsss.methods.cpal.branch import BranchOutput, CPALBranch
from wsss.methods.cpal.module import CPAL

__all__ = ["CPAL", "BranchOutput", "CPALBranch"]
