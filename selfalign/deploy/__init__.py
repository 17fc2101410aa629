"""Values, schemas and checks of releases: what the Makefile calls before `helm` and `images/build`.

It works on charts/, jobs/ and images/ of the checkout with the user's own tools (helm, kubectl,
docker or podman or buildah), and is no part of the images.
"""
