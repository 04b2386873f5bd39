//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiwait "k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/test/e2e/auditlog"
)

// The operator under test has the rights of config/rbac and no others, by the service account that rights/kustomization.yaml makes. That of the chart,
// whose rights are the same (test/chart sees to it) but given by namespace, has those of the chart.
const (
	operatorAccount = "e2e-zuulbuild"
	operatorUser    = "system:serviceaccount:" + metav1.NamespaceDefault + ":" + operatorAccount
	chartUser       = "system:serviceaccount:" + operatorNamespace + ":zuulbuild"
)

// apiServerArguments have the API server let nobody make an object that holds up the deletion of its owner, without a right to the owner's finalizers. It is
// so by default in OpenShift.
var apiServerArguments = map[string][]string{"kube-apiserver": {"--enable-admission-plugins=OwnerReferencesPermissionEnforcement"}}

// unusedRights are those that no request here needs, with what they are given for.
var unusedRights = map[string]string{
	"update zuulbuild.dev/zuulbuilds/finalizers": "not asked for by a request, but by the API server, see apiServerArguments: without it no build has a Pod",
	"patch events.k8s.io/events":                 "an event that comes again within minutes: of a cordon that was refused, where the verdict could not be written either",
}

// prepareOperatorUser writes the kubeconfig of operatorUser, and returns when its rights count.
func prepareOperatorUser(ctx context.Context, kubeconfig string) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: operatorAccount}}
	token, err := tokenOf(ctx, account)
	if err != nil {
		return err
	}
	access, err := clientcmd.LoadFromFile(cluster.Kubeconfig())
	if err != nil {
		return err
	}
	for name := range access.AuthInfos {
		access.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	}
	if err := clientcmd.WriteToFile(*access, kubeconfig); err != nil {
		return err
	}
	config, err := cluster.RESTConfig()
	if err != nil {
		return err
	}
	config.Impersonate.UserName = operatorUser // in the audit log these requests are the administrator's
	operator, err := client.New(config, client.Options{Scheme: kubernetes.Scheme()})
	if err != nil {
		return err
	}
	// The API server learns of rights, and which resource has the finalizers of a new kind, a while later.
	owned := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "owned", OwnerReferences: []metav1.OwnerReference{{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "ZuulBuild", Name: "owner", UID: "owner", BlockOwnerDeletion: ptr.To(true),
	}}}}
	var last error
	if err := apiwait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		last = operator.Create(ctx, owned.DeepCopy(), client.DryRunAll)
		return last == nil, nil
	}); err != nil {
		return fmt.Errorf("the rights of the operator do not count: %w", errors.Join(err, last))
	}
	return nil
}

// tokenOf is what the owner of a service account shows, for longer than the tests take.
func tokenOf(ctx context.Context, account *corev1.ServiceAccount) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(24 * time.Hour / time.Second))}}
	err := kubernetes.SubResource("token").Create(ctx, account, request)
	return request.Status.Token, err
}

// filtered tells whether not all of the tests are to run.
func filtered() bool {
	return slices.ContainsFunc([]string{"test.run", "test.skip", "test.list"}, func(name string) bool { return flag.Lookup(name).Value.String() != "" })
}

// checkRights compares the rights of the operator with what it asked the API server for since the tests began: it must have had all that it needed and,
// where all tests ran, must have needed all that it had.
func checkRights(begun time.Time, all bool) error {
	use, err := auditlog.ReadUse(cluster.AuditLog(), operatorUser, begun)
	if err != nil {
		return err
	}
	var faults []error
	for _, refused := range use.Refused {
		faults = append(faults, fmt.Errorf("the operator has no right to %s", refused))
	}
	if all {
		ofChart, err := auditlog.ReadUse(cluster.AuditLog(), chartUser, begun)
		if err != nil {
			return err
		}
		maps.Copy(use.Used, ofChart.Used)
		given, err := givenRights()
		if err != nil {
			return err
		}
		for _, right := range given {
			if _, excused := unusedRights[right]; !use.Used[right] && !excused {
				faults = append(faults, fmt.Errorf("config/rbac/role.yaml gives the right to %s, which no test used", right))
			}
		}
		for right := range unusedRights {
			if !slices.Contains(given, right) {
				faults = append(faults, fmt.Errorf("unusedRights has %q, which config/rbac/role.yaml does not give", right))
			}
		}
	}
	return errors.Join(faults...)
}

// givenRights are those of config/rbac/role.yaml.
func givenRights() (rights []string, err error) {
	content, err := os.ReadFile("../../config/rbac/role.yaml")
	if err != nil {
		return nil, err
	}
	for document := range bytes.SplitSeq(content, []byte("\n---\n")) {
		role := rbacv1.ClusterRole{}
		if err := yaml.Unmarshal(document, &role); err != nil {
			return nil, fmt.Errorf("config/rbac/role.yaml: %w", err)
		}
		rights = append(rights, auditlog.Rights(role.Rules)...)
	}
	return rights, nil
}
