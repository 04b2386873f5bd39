package v1alpha1_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// TestFindClass: the answer does not hang on the order of the list, which a cache gives as it likes.
func TestFindClass(t *testing.T) {
	class := func(name, className string, second int64) v1alpha1.ZuulNodeClass {
		return v1alpha1.ZuulNodeClass{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(second, 0)}, Spec: v1alpha1.ZuulNodeClassSpec{ClassName: className},
		}
	}
	items := []v1alpha1.ZuulNodeClass{class("arm", "", 9), class("older", "arm", 5), class("oldest-b", "arm", 3), class("oldest-a", "arm", 3), class("x86", "", 1)}
	for i := range items {
		list := v1alpha1.ZuulNodeClassList{Items: append(append([]v1alpha1.ZuulNodeClass{}, items[i:]...), items[:i]...)}
		if got := list.Find("arm"); got == nil || got.Name != "oldest-a" {
			t.Errorf("turned by %d: %v", i, got)
		}
	}
	list := v1alpha1.ZuulNodeClassList{Items: items}
	if got := list.Find("older"); got != nil {
		t.Errorf("found %s by the name of its object", got.Name)
	}
}
