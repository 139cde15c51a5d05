"""The engine domain. This file must import nothing, so that `llamacpp_server` starts fast."""
