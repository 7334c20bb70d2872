"""Reports as pages that need no network, drawn from the JSON documents that the commands print."""

from xattn_edge.report.profile_page import profile_page
from xattn_edge.report.profile_plots import require_plots

__all__ = ["profile_page", "require_plots"]
