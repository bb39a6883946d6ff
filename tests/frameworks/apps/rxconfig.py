import reflex as rx

# Its states are otherwise in files, which all processes share.
config = rx.Config(app_name="reflex_app", state_manager_mode="memory", transport="websocket")
