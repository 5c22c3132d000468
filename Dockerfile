# One image for operator, controllers and nodes. It is built without any network from a folder of wheels:
#   make wheels && docker build --network=none -t understudy:latest .
# For GPUs, put a torch wheel for CUDA into `wheels` (it brings NCCL), and build on the same base image.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
COPY wheels /wheels
COPY requirements.lock /build/requirements.lock
# The lock pins what is installed, and pip takes nothing that is not in the folder. No compiler is needed, and none there.
# Byte code is made now: the root file system is read-only later.
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels PIP_CONSTRAINT=/build/requirements.lock
RUN python3 -m venv --copies --without-pip /opt/understudy \
 && python3 -m pip --python /opt/understudy/bin/python install --no-cache-dir torch understudy

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title=understudy \
      org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /opt/understudy /opt/understudy
# Nobody's password, nobody's shell; the root file system may be read-only: what is written goes to /shared and /tmp.
RUN echo 'understudy:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'understudy:x:10001:' >> /etc/group \
 && install -d -o 10001 -g 10001 /shared
ENV PATH=/opt/understudy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
WORKDIR /shared
STOPSIGNAL SIGTERM
# Each program is process 1, hears SIGTERM itself and reaps its children: no init in between.
CMD ["understudy", "--help"]
