"""The script that Streamlit runs, apart from `pages/`, which it would take for scripts too."""
