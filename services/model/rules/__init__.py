"""The decisions, states, replies, views and estimates of the model domain. All pure."""
