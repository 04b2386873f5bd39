package censor

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Refusal is why a log must not be shown at all: what is to be hidden in it is not known. It is part of a sentence for whoever wants to read the log.
type Refusal string

func (r Refusal) Error() string { return string(r) }

func refuse(format string, arguments ...any) error { return Refusal(fmt.Sprintf(format, arguments...)) }

// noted is what the annotation of a Pod tells of a Secret. A log is censored by what its Pod was given, not by what the ZuulJob and the Secret say by
// the time somebody reads it.
type noted struct {
	v1alpha1.CensoredSecret
	// Version is the resource version that the Secret had when the Pod was about to be made; empty where it could not be read.
	Version string `json:"version,omitempty"`
}

// Note writes on a Pod that is about to be made which Secrets its log is to be censored for, and which version of each there is now. A Secret that does
// not exist or may not be read is no error: the log will be refused. The reader must not be a cache.
func Note(ctx context.Context, reader client.Reader, pod *corev1.Pod, declared []v1alpha1.CensoredSecret) error {
	delete(pod.Annotations, v1alpha1.AnnotationCensor)
	if len(declared) == 0 {
		return nil
	}
	notes := make([]noted, len(declared))
	for i, secret := range declared {
		found := metav1.PartialObjectMetadata{} // the values are of no concern here
		found.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
		err := reader.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: secret.Name}, &found)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			return fmt.Errorf("read the version of Secret %s, which the log is to be censored for: %w", secret.Name, err)
		}
		notes[i] = noted{secret, found.ResourceVersion}
	}
	text, err := json.Marshal(notes)
	if err != nil {
		return err
	}
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, v1alpha1.AnnotationCensor, string(text))
	return nil
}

// Of makes the Censor for the log of a Pod: nil if nothing is to be censored. The error is a Refusal where the log must not be shown; any other may
// pass. The reader must not be a cache.
func Of(ctx context.Context, reader client.Reader, pod *corev1.Pod) (*Censor, error) {
	text := pod.Annotations[v1alpha1.AnnotationCensor]
	if text == "" {
		return nil, nil
	}
	var notes []noted
	if err := json.Unmarshal([]byte(text), &notes); err != nil {
		return nil, refuse("nobody can read annotation %s of its Pod, which says which", v1alpha1.AnnotationCensor)
	}
	var all [][]byte
	size := 0
	for _, note := range notes {
		values, err := note.values(ctx, reader, pod.Namespace)
		if err != nil {
			return nil, err
		}
		for _, value := range values {
			size += len(value)
		}
		all = append(all, values...)
	}
	if size > MaxSize {
		return nil, refuse("they have %d bytes together, of which no more than %d can be looked for; spec.censor of the job may name keys", size, MaxSize)
	}
	return New(all...), nil
}

// values reads what is to be hidden of a Secret.
func (n *noted) values(ctx context.Context, reader client.Reader, namespace string) ([][]byte, error) {
	var secret corev1.Secret
	err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: n.Name}, &secret)
	switch {
	case apierrors.IsForbidden(err):
		return nil, refuse("the operator may not read Secret %s: docs/jobs.md tells how to let it", n.Name)
	case apierrors.IsNotFound(err):
		return nil, refuse("Secret %s does not exist", n.Name)
	case err != nil:
		return nil, err
	case n.Version == "":
		return nil, refuse("Secret %s could not be read before the build began, so that it may have held something else", n.Name)
	case n.Version != secret.ResourceVersion:
		return nil, refuse("Secret %s was changed since the build began, so that it may have held something else", n.Name)
	}
	keys := n.Keys
	if len(keys) == 0 {
		keys = slices.Sorted(maps.Keys(secret.Data))
	}
	values := make([][]byte, len(keys))
	for i, key := range keys {
		value, there := secret.Data[key]
		switch {
		case !there:
			return nil, refuse("Secret %s has no key %s", n.Name, key)
		case len(lines(value, 1)) > 0 && len(lines(value, MinLength)) == 0:
			return nil, refuse("%s in Secret %s is too short to be told from other text: at least %d characters, or spec.censor of the job must name the other keys",
				key, n.Name, MinLength)
		}
		values[i] = value
	}
	return values, nil
}
