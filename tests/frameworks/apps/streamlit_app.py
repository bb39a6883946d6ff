from pathlib import Path

import streamlit as st

app = st.App(Path(__file__).with_name("streamlit_script.py"))
