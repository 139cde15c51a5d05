"""The gateway's gRPC contract, and what protoc has made of it (`make proto`)."""
