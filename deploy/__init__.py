"""What runs the service: the image's own small programs, and the native twin of docker-compose.yml."""
