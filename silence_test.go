package main

import (
	"context"
	"errors"
	"net/url"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
	"zuulbuild.dev/zuulbuild/replicas"
)

// TestSilentAPIServer: a connection that is silently gone is given up, and another one made, before others would call this replica dead.
func TestSilentAPIServer(t *testing.T) {
	for _, variable := range []string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS", "HTTP2_PING_TIMEOUT_SECONDS"} {
		t.Setenv(variable, "")
		must(t, os.Unsetenv(variable))
	}
	path := apiserver.Kubeconfig(t)
	access, err := clientcmd.LoadFromFile(path)
	must(t, err)
	server, err := url.Parse(access.Clusters["test"].Server)
	must(t, err)
	network := gearmantest.NewProxy(t, server.Host)
	server.Host = network.Address
	access.Clusters["test"].Server, access.Clusters["test"].TLSServerName = server.String(), "localhost" // so that no connection of other tests serves
	must(t, clientcmd.WriteToFile(*access, path))
	config, err := (&operatorOptions{kubeconfig: path}).config()
	must(t, err)
	api, err := client.New(config, client.Options{})
	must(t, err)
	ask := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), replicas.Duration/2) // as the replicas do
		defer cancel()
		return api.Get(ctx, client.ObjectKey{Name: "default"}, &corev1.Namespace{})
	}
	must(t, ask())
	network.Mute()
	silent := time.Now()
	for ask() != nil {
		if time.Since(silent) > time.Minute {
			t.Fatal("no answer on a new connection")
		}
	}
	t.Logf("an answer after %v", time.Since(silent))
	if took, most := time.Since(silent), replicas.Duration-2*replicas.Interval; took > most {
		t.Errorf("an answer after %v, want one within %v", took, most)
	}
}

// endless is a manager that does not end, as that of controller-runtime where a cache is never filled.
type endless struct {
	manager.Manager
	end chan error
}

func (m *endless) Start(context.Context) error { return <-m.end }

func TestManagerThatDoesNotEnd(t *testing.T) {
	checkGoroutines(t)
	m := &endless{end: make(chan error)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := startManager(ctx, m, time.Millisecond); err == nil {
		t.Error("nothing tells that not everything has ended")
	}
	close(m.end)
	failed := errors.New("it failed")
	m = &endless{end: make(chan error, 1)}
	m.end <- failed
	if err := startManager(t.Context(), m, time.Millisecond); !errors.Is(err, failed) {
		t.Errorf("got %v, want what the manager ended with", err)
	}
}
