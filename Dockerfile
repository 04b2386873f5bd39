# The same image as `make image` builds without Docker, by other means: its layers are not the same bytes. See hack/image.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=… .
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26-bookworm AS build
ARG TARGETOS TARGETARCH VERSION=development
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$VERSION" -o /zuulbuild .

FROM scratch
COPY hack/image/rootfs/ /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /zuulbuild /zuulbuild
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/zuulbuild"]
