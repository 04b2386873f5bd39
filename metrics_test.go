package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

const patience = 30 * time.Second

// accounts are service accounts of a namespace of the test, with no rights but those they are given.
type accounts struct {
	*testing.T
	clients   kubernetes.Interface
	namespace string
}

// add makes a service account that has a ClusterRole of config/rbac, or none, and returns its token.
func (a *accounts) add(name string, role *rbacv1.ClusterRole) (token string) {
	a.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := a.clients.CoreV1().ServiceAccounts(a.namespace).Create(a.Context(), account, metav1.CreateOptions{})
	must(a, err)
	if role != nil {
		role.Name = a.namespace + "-" + name
		_, err = a.clients.RbacV1().ClusterRoles().Create(a.Context(), role, metav1.CreateOptions{})
		must(a, err)
		_, err = a.clients.RbacV1().ClusterRoleBindings().Create(a.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
			Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: a.namespace}},
		}, metav1.CreateOptions{})
		must(a, err)
	}
	request, err := a.clients.CoreV1().ServiceAccounts(a.namespace).CreateToken(a.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	must(a, err)
	return request.Status.Token
}

// awaitRight waits until the API server knows of a right of a service account: the operator would keep the answer that it has none.
func (a *accounts) awaitRight(name string, spec authorizationv1.SubjectAccessReviewSpec) {
	a.Helper()
	spec.User = "system:serviceaccount:" + a.namespace + ":" + name
	gearmantest.Eventually(a, patience, "a right of "+name, func() bool {
		review, err := a.clients.AuthorizationV1().SubjectAccessReviews().Create(a.Context(), &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
		must(a, err)
		return review.Status.Allowed
	})
}

// clusterRole is the first object of a file of config/rbac.
func clusterRole(t *testing.T, file string) *rbacv1.ClusterRole {
	t.Helper()
	content, err := os.ReadFile("config/rbac/" + file)
	must(t, err)
	content, _, _ = bytes.Cut(content, []byte("\n---\n"))
	role := &rbacv1.ClusterRole{}
	must(t, yaml.UnmarshalStrict(content, role))
	return role
}

// serveMetrics starts what the operator serves its metrics with, and returns its address.
func serveMetrics(t *testing.T, config *rest.Config, o *operatorOptions) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.2:0") // where no other test, and no connection, takes the port meanwhile
	must(t, err)
	address = listener.Addr().String()
	must(t, listener.Close())
	o.metricsAddress, o.healthAddress = address, "0"
	mgr, err := o.newManager(config)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	gearmantest.Eventually(t, patience, "metrics at "+address, func() bool {
		connection, err := net.Dial("tcp", address)
		if err == nil {
			_ = connection.Close()
		}
		return err == nil
	})
	return address
}

// scrape asks for metrics as the owner of a token does, or as nobody, and returns the answer and the certificate of who gave it.
func scrape(t *testing.T, address, token string, config *tls.Config) (status int, body string, certificate *x509.Certificate) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/metrics", nil)
	must(t, err)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	must(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	must(t, err)
	return response.StatusCode, string(content), response.TLS.PeerCertificates[0]
}

// TestSecureMetrics: metrics are told to those alone whom the API server knows and lets get them. The operator has the rights of config/rbac.
func TestSecureMetrics(t *testing.T) {
	server := apiserver.Config(t)
	clients, err := kubernetes.NewForConfig(server)
	must(t, err)
	a := &accounts{t, clients, apiserver.Namespace(t)}
	operator := rest.AnonymousClientConfig(server)
	operator.BearerToken = a.add("operator", clusterRole(t, "role.yaml"))
	stranger, reader := a.add("stranger", nil), a.add("reader", clusterRole(t, "metrics.yaml"))
	for group, resource := range map[string]string{"authentication.k8s.io": "tokenreviews", "authorization.k8s.io": "subjectaccessreviews"} {
		a.awaitRight("operator", authorizationv1.SubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "create", Group: group, Resource: resource},
		})
	}
	a.awaitRight("reader", authorizationv1.SubjectAccessReviewSpec{NonResourceAttributes: &authorizationv1.NonResourceAttributes{Verb: "get", Path: "/metrics"}})

	t.Run("self-signed", func(t *testing.T) {
		address := serveMetrics(t, operator, &operatorOptions{metricsSecure: true})
		got := map[string]int{}
		for who, token := range map[string]string{"nobody": "", "unknown": "none", "stranger": stranger, "reader": reader} {
			status, body, _ := scrape(t, address, token, &tls.Config{InsecureSkipVerify: true})
			if got[who] = status; (status == http.StatusOK) != strings.Contains(body, "\ngo_goroutines ") {
				t.Errorf("%s got %.300q", who, body)
			}
		}
		// controller-runtime takes a token that the API server refuses for a question that failed.
		if diff := cmp.Diff(map[string]int{"nobody": 401, "unknown": 500, "stranger": 403, "reader": 200}, got); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		response, err := http.Get("http://" + address + "/metrics")
		if err == nil {
			_ = response.Body.Close()
		}
		if err == nil && response.StatusCode == http.StatusOK {
			t.Error("they are told in plain HTTP too")
		}
	})

	t.Run("certificate", func(t *testing.T) {
		authority, folder := gearmantest.NewAuthority(t), t.TempDir()
		first := authority.Sign("metrics", nil)
		authority.WriteFiles(folder, first)
		address := serveMetrics(t, operator, &operatorOptions{metricsSecure: true, metricsCertDir: folder})
		trusting := &tls.Config{RootCAs: authority.Pool(), ServerName: "metrics"}
		status, _, certificate := scrape(t, address, reader, trusting)
		if status != http.StatusOK || !bytes.Equal(certificate.Raw, first.Certificate[0]) {
			t.Errorf("%d, certificate %v", status, certificate.SerialNumber)
		}
		second := authority.Sign("metrics", nil)
		authority.WriteFiles(folder, second)
		gearmantest.Eventually(t, patience, "the new certificate", func() bool {
			_, _, certificate := scrape(t, address, reader, trusting)
			return bytes.Equal(certificate.Raw, second.Certificate[0])
		})
	})
}

// TestPlainMetrics: without --metrics-secure everybody gets them in plain HTTP.
func TestPlainMetrics(t *testing.T) {
	address := serveMetrics(t, apiserver.Config(t), &operatorOptions{})
	response, err := http.Get("http://" + address + "/metrics")
	must(t, err)
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Error(response.Status)
	}
}
