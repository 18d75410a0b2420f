"""Small parts of pages that Streamlit has no widget for; their JavaScript lies beside them."""
