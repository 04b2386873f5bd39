package localcluster

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// startDNS runs CoreDNS on the host, beside the API server, so that names resolve whichever node is cut off. Pods reach it
// through a Service at the conventional address.
func (c *Cluster) startDNS(ctx context.Context) error {
	corefile, err := render("Corefile", map[string]any{
		"ClusterDomain": clusterDomain, "DNSPort": c.state.DNSPort, "HostAddress": c.state.Slot.hostAddress(),
		"Kubeconfig": strconv.Quote(c.controlPlaneFile("coredns.kubeconfig")),
	})
	if err != nil {
		return err
	}
	if err := writeFile(c.controlPlaneFile("Corefile"), corefile, 0o644); err != nil {
		return err
	}
	if err := c.startControlPlaneProgram("coredns", "-conf", c.controlPlaneFile("Corefile")); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	service, slice := dnsObjects(c.state.Slot.hostAddress().String(), c.state.DNSPort)
	if _, err := client.CoreV1().Services(service.Namespace).Create(ctx, service, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("service of cluster DNS: %w", err)
	}
	if _, err := client.DiscoveryV1().EndpointSlices(slice.Namespace).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("endpoint of cluster DNS: %w", err)
	}
	return nil
}

// dnsObjects are a Service without selector and the endpoint it leads to.
func dnsObjects(address string, port int) (*corev1.Service, *discoveryv1.EndpointSlice) {
	const name = "kube-dns"
	meta := metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceSystem, Labels: map[string]string{"k8s-app": name}}
	service := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: dnsServiceAddress}}
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "localcluster"}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}},
	}
	for portName, protocol := range map[string]corev1.Protocol{"dns": corev1.ProtocolUDP, "dns-tcp": corev1.ProtocolTCP} {
		number := int32(port)
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: portName, Protocol: protocol, Port: 53, TargetPort: intstr.FromInt32(number)})
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &portName, Protocol: &protocol, Port: &number})
	}
	return service, slice
}

// awaitDNS waits until CoreDNS knows the API server's name, and then until each node reaches it through kube-proxy.
func (c *Cluster) awaitDNS(ctx context.Context) error {
	const name = "kubernetes.default.svc." + clusterDomain
	server := net.JoinHostPort(c.state.Slot.hostAddress().String(), strconv.Itoa(c.state.DNSPort))
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server)
	}}
	err := c.await(ctx, "coredns", 60*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		_, err := resolver.LookupIPAddr(ctx, name+".")
		return err
	})
	if err != nil {
		return err
	}
	for _, node := range c.Nodes() {
		err := c.await(ctx, "kube-proxy-"+node.Name(), 60*time.Second, 200*time.Millisecond, func(ctx context.Context) error {
			output, err := node.Command(ctx, "busybox", "nslookup", name, dnsServiceAddress).CombinedOutput()
			if err != nil {
				return fmt.Errorf("no DNS answer from %s: %w: %s", dnsServiceAddress, err, lastLines(string(output), 2))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
