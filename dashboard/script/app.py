"""The Streamlit script; `headscope app` runs it. Its arguments are folders of runs."""

import sys

from dashboard.frame import main

main(sys.argv[1:])
