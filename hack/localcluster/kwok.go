package localcluster

import (
	"context"
	"fmt"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Simulated nodes run nothing: kwok plays the life of the Pods on them. They are tainted, so that only Pods that tolerate
// it get there.
const (
	// KwokTaint is the key of the taint (value "fake", effect NoSchedule) and of the annotation of simulated nodes.
	KwokTaint = "kwok.x-k8s.io/node"
	// KwokNodeName is the NodeLabel of simulated nodes.
	KwokNodeName = "kwok"
	// KwokDurationAnnotation on a Pod with restartPolicy Never says after how long it ends, in Go's syntax; default 1s.
	KwokDurationAnnotation = "pod-complete.stage.kwok.x-k8s.io/delay"
	// KwokLongestAnnotation says after how long it ends at the latest: the time is random then, and KwokDurationAnnotation
	// the shortest.
	KwokLongestAnnotation = "pod-complete.stage.kwok.x-k8s.io/jitter-delay"
	// KwokExitCodeAnnotation says which exit code its containers end with; default 0.
	KwokExitCodeAnnotation = "pod-complete.stage.kwok.x-k8s.io/exit-code"

	kwokPodsPerNode = 110
	kwokCreators    = 16 // nodes created at the same time
)

// startKwok starts kwok and creates the simulated nodes, if any are asked for.
func (c *Cluster) startKwok(ctx context.Context) error {
	if c.options.KwokNodes == 0 {
		return nil
	}
	config, err := render("kwok.yaml", map[string]any{
		"HostAddress": c.state.Slot.hostAddress(), "Architecture": runtime.GOARCH, "PodsPerNode": kwokPodsPerNode,
		"DurationAnnotation": KwokDurationAnnotation, "LongestAnnotation": KwokLongestAnnotation, "ExitCodeAnnotation": KwokExitCodeAnnotation,
	})
	if err != nil {
		return err
	}
	if err := writeFile(c.controlPlaneFile("kwok.yaml"), config, 0o644); err != nil {
		return err
	}
	err = c.startControlPlaneProgram("kwok", "--config="+c.controlPlaneFile("kwok.yaml"), "--kubeconfig="+c.controlPlaneFile("kwok.kubeconfig"))
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return createKwokNodes(ctx, client, c.options.KwokNodes)
}

func createKwokNodes(ctx context.Context, client kubernetes.Interface, count int) error {
	creators := make([]func(context.Context) error, kwokCreators)
	for first := range creators {
		creators[first] = func(ctx context.Context) error {
			for number := first + 1; number <= count; number += kwokCreators {
				node := kwokNode(number)
				if _, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
					return fmt.Errorf("create node %s: %w", node.Name, err)
				}
			}
			return nil
		}
	}
	return together(ctx, creators...)
}

func kwokNode(number int) *corev1.Node {
	name := fmt.Sprintf("kwok-%d", number)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{NodeLabel: KwokNodeName, corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH},
			Annotations: map[string]string{KwokTaint: "fake"},
		},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: KwokTaint, Value: "fake", Effect: corev1.TaintEffectNoSchedule}}},
	}
}

// awaitKwokNodes waits until kwok has made every simulated node ready.
func (c *Cluster) awaitKwokNodes(ctx context.Context) error {
	if c.options.KwokNodes == 0 {
		return nil
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.await(ctx, "kwok", 120*time.Second, 500*time.Millisecond, func(ctx context.Context) error {
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: NodeLabel + "=" + KwokNodeName, ResourceVersion: "0"})
		if err != nil {
			return err
		}
		ready := 0
		for _, node := range nodes.Items {
			if conditionsReady(&node) == nil {
				ready++
			}
		}
		if ready < c.options.KwokNodes {
			return fmt.Errorf("%d of %d simulated nodes are ready", ready, c.options.KwokNodes)
		}
		return nil
	})
}
