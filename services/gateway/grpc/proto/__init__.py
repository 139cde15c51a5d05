"""The gateway's gRPC contract, and the code that protoc generates from it (`make proto`)."""
