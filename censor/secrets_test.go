package censor

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// cluster is an API server with Secrets in namespace ci, which may be forbidden to read, or fail.
type cluster struct {
	client.WithWatch
	failure map[string]error // by the name of a Secret
}

func newCluster(secrets ...*corev1.Secret) *cluster {
	builder := fake.NewClientBuilder().WithGlobalResourceVersionCounter() // as a real API server has it
	for _, secret := range secrets {
		builder.WithObjects(secret)
	}
	c := &cluster{failure: map[string]error{}}
	c.WithWatch = interceptor.NewClient(builder.Build(), interceptor.Funcs{
		Get: func(ctx context.Context, api client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			if err := c.failure[key.Name]; err != nil {
				return err
			}
			return api.Get(ctx, key, object, options...)
		},
	})
	return c
}

func forbidden(name string) error {
	return apierrors.NewForbidden(corev1.Resource("secrets"), name, errors.New("no such right"))
}

func secret(name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: name}, Data: map[string][]byte{}}
	for key, value := range data {
		s.Data[key] = []byte(value)
	}
	return s
}

func newPod() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: "b1"}}
}

func TestSecretsOfAPod(t *testing.T) {
	declared := []v1alpha1.CensoredSecret{{Name: "token"}, {Name: "registry", Keys: []string{"password"}}}
	change := func(name string, how func(*corev1.Secret)) func(*testing.T, *cluster) {
		return func(t *testing.T, c *cluster) {
			found := &corev1.Secret{}
			if err := c.Get(t.Context(), client.ObjectKey{Namespace: "ci", Name: name}, found); err != nil {
				t.Fatal(err)
			}
			how(found)
			if err := c.Update(t.Context(), found); err != nil {
				t.Fatal(err)
			}
		}
	}
	remake := func(t *testing.T, c *cluster) {
		again := secret("token", map[string]string{"a": "hunter2", "b": "rosebud"})
		if err := errors.Join(c.Delete(t.Context(), again), c.Create(t.Context(), again)); err != nil {
			t.Fatal(err)
		}
	}
	unreachable := errors.New("dial 10.1.2.3")
	for name, test := range map[string]struct {
		declared     []v1alpha1.CensoredSecret
		before       func(*testing.T, *cluster) // before the Pod is made
		after        func(*testing.T, *cluster) // when it is there
		refused      string                     // part of why the log is; empty: it is shown
		couldNotRead bool                       // it may be shown later
		want         string                     // what is shown
	}{
		"none":                {want: "hunter2 rosebud robot mellon"},
		"some":                {declared: declared, want: "**** **** robot ****"},
		"one key":             {declared: []v1alpha1.CensoredSecret{{Name: "token", Keys: []string{"a"}}}, want: "**** rosebud robot mellon"},
		"changed before":      {declared: declared, before: change("token", func(s *corev1.Secret) { s.Data["a"] = []byte("robot") }), want: "hunter2 **** **** ****"},
		"changed":             {declared: declared, after: change("registry", func(s *corev1.Secret) { s.Data["password"] = []byte("robot") }), refused: "registry was changed"},
		"a key taken away":    {declared: declared, after: change("token", func(s *corev1.Secret) { delete(s.Data, "b") }), refused: "token was changed"},
		"made again":          {declared: declared, after: remake, refused: "token was changed"},
		"forbidden":           {declared: declared, before: forbid("token"), refused: "may not read Secret token"},
		"forbidden since":     {declared: declared, after: forbid("registry"), refused: "may not read Secret registry"},
		"forbidden no more":   {declared: declared, before: forbid("token"), after: allow("token"), refused: "token could not be read before the build began"},
		"gone":                {declared: declared, after: remove("token"), refused: "token does not exist"},
		"never there":         {declared: []v1alpha1.CensoredSecret{{Name: "tokens"}}, refused: "tokens does not exist"},
		"no such key":         {declared: []v1alpha1.CensoredSecret{{Name: "token", Keys: []string{"a", "c"}}}, refused: "token has no key c"},
		"too short":           {declared: []v1alpha1.CensoredSecret{{Name: "short"}}, refused: "pin in Secret short is too short"},
		"the short one aside": {declared: []v1alpha1.CensoredSecret{{Name: "short", Keys: []string{"blank", "long"}}}, want: "hunter2 rosebud **** mellon"},
		"too much":            {declared: []v1alpha1.CensoredSecret{{Name: "large"}}, refused: "65537 bytes"},
		"unreachable":         {declared: declared, after: fail("token", unreachable), couldNotRead: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(secret("token", map[string]string{"a": "hunter2", "b": "rosebud"}), secret("registry", map[string]string{"user": "robot", "password": "mellon"}),
				secret("short", map[string]string{"pin": "123\n", "long": "robot", "blank": " \n"}), secret("large", map[string]string{"a": strings.Repeat("x", MaxSize+1)}))
			pod := newPod()
			pod.Annotations = map[string]string{v1alpha1.AnnotationCensor: "of a template"}
			if test.before != nil {
				test.before(t, c)
			}
			if err := Note(t.Context(), c, pod, test.declared); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(pod.Annotations[v1alpha1.AnnotationCensor], "hunter2") {
				t.Error("the Pod tells the secret")
			}
			if test.after != nil {
				test.after(t, c)
			}
			censor, err := Of(t.Context(), c, pod)
			var refusal Refusal
			switch {
			case test.refused != "":
				if !errors.As(err, &refusal) || !strings.Contains(string(refusal), test.refused) || censor != nil {
					t.Errorf("got %v, want a refusal with %q", err, test.refused)
				}
			case test.couldNotRead:
				if err == nil || errors.As(err, &refusal) {
					t.Errorf("got %v, want an error that may pass", err)
				}
			case err != nil:
				t.Error(err)
			default:
				if got := read(t, censor, strings.NewReader("hunter2 rosebud robot mellon")); got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
			}
		})
	}
}

func TestUnreadableNote(t *testing.T) {
	pod := newPod()
	pod.Annotations = map[string]string{v1alpha1.AnnotationCensor: "{"}
	var refusal Refusal
	if _, err := Of(t.Context(), newCluster(), pod); !errors.As(err, &refusal) || !strings.Contains(err.Error(), "annotation zuulbuild.dev/censor") {
		t.Errorf("got %v", err)
	}
}

func fail(name string, err error) func(*testing.T, *cluster) {
	return func(_ *testing.T, c *cluster) { c.failure[name] = err }
}

func forbid(name string) func(*testing.T, *cluster) { return fail(name, forbidden(name)) }
func allow(name string) func(*testing.T, *cluster)  { return fail(name, nil) }

func remove(name string) func(*testing.T, *cluster) {
	return func(t *testing.T, c *cluster) {
		if err := c.Delete(t.Context(), secret(name, nil)); err != nil {
			t.Fatal(err)
		}
	}
}

// A Pod that is made while the API server does not answer would have a log that is never shown: it is not made.
func TestNoteWaitsForTheAPIServer(t *testing.T) {
	c := newCluster(secret("token", nil))
	fail("token", errors.New("dial 10.1.2.3"))(t, c)
	pod := newPod()
	if err := Note(t.Context(), c, pod, []v1alpha1.CensoredSecret{{Name: "token"}}); err == nil || !strings.Contains(err.Error(), "Secret token") {
		t.Errorf("got %v", err)
	}
	if pod.Annotations != nil {
		t.Errorf("annotations %v", pod.Annotations)
	}
}
