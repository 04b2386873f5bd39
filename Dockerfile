# The same image as `make image` builds without Docker, by other means: its layers are not the same bytes. See hack/image.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=… .
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26-bookworm AS build
ARG VERSION=development
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN go run ./hack/release --notices /licences.txt --version "$VERSION"
ARG TARGETOS TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$VERSION" -o /zuulbuild .

FROM scratch
ARG VERSION=development
LABEL org.opencontainers.image.title=zuulbuild
LABEL org.opencontainers.image.version=$VERSION
LABEL org.opencontainers.image.licenses=Apache-2.0
COPY hack/image/rootfs/ /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY LICENSE /licenses/
COPY --from=build /licences.txt /licenses/
COPY --from=build /zuulbuild /zuulbuild
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/zuulbuild"]
