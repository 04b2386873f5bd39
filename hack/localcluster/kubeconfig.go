package localcluster

import (
	"fmt"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// renderKubeconfig is a whole kubeconfig with everything in it, for one user of one cluster.
func renderKubeconfig(cluster, server, user string, authority []byte, client keyPair) ([]byte, error) {
	config := api.NewConfig()
	config.Clusters[cluster] = &api.Cluster{Server: server, CertificateAuthorityData: authority}
	config.AuthInfos[user] = &api.AuthInfo{ClientCertificateData: client.certificate, ClientKeyData: client.key}
	name := user + "@" + cluster
	config.Contexts[name] = &api.Context{Cluster: cluster, AuthInfo: user}
	config.CurrentContext = name
	return clientcmd.Write(*config)
}

// Kubeconfig is the path of a kubeconfig of a cluster administrator; it works from the host.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.folder, "kubeconfig") }

// RESTConfig is the configuration of a client with the rights of Kubeconfig. Its client-side rate limit is off: the API
// server's own fairness governs, and tests measure that.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.name, err)
	}
	config.QPS = -1
	return config, nil
}
