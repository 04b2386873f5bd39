//go:build linux

package dashboard

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/hack/localcluster"
	"zuulbuild.dev/zuulbuild/hack/programs"
)

// Scraped is something that Prometheus scrapes, at HOST:PORT, with the labels it would have from where it was found.
type Scraped struct {
	Address string
	Labels  map[string]string
}

// Prometheus is one that runs.
type Prometheus struct {
	v1.API
	program   *programs.Program
	transport *http.Transport
}

// StartPrometheus starts one that keeps all it has in a folder. It scrapes each of what it is given once an interval, in plain HTTP.
func StartPrometheus(folder string, interval time.Duration, scraped ...Scraped) (*Prometheus, error) {
	path := localcluster.Tool("prometheus")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w: `go run ./hack/localcluster/cmd tools prometheus` builds it", err)
	}
	configuration := filepath.Join(folder, "prometheus.yaml")
	if err := writeConfiguration(configuration, interval, scraped); err != nil {
		return nil, err
	}
	address, err := programs.FreeAddress()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{}
	client, err := api.NewClient(api.Config{Address: "http://" + address, RoundTripper: transport})
	if err != nil {
		return nil, err
	}
	program, err := programs.StartBound(filepath.Join(folder, "prometheus.log"), path, "--config.file", configuration,
		"--storage.tsdb.path", filepath.Join(folder, "data"), "--web.listen-address", address)
	if err != nil {
		return nil, err
	}
	p := &Prometheus{v1.NewAPI(client), program, transport}
	if _, err := program.AwaitLine("Server is ready to receive web requests", 30*time.Second); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// Stop ends it.
func (p *Prometheus) Stop() {
	p.transport.CloseIdleConnections()
	p.program.Stop(10 * time.Second)
}

func writeConfiguration(file string, interval time.Duration, scraped []Scraped) error {
	type static struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	statics := make([]static, 0, len(scraped))
	for _, one := range scraped {
		statics = append(statics, static{[]string{one.Address}, one.Labels})
	}
	content, err := yaml.Marshal(map[string]any{
		"global":         map[string]any{"scrape_interval": interval.String(), "scrape_timeout": interval.String()},
		"scrape_configs": []map[string]any{{"job_name": "zuulbuild", "static_configs": statics}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o600)
}
