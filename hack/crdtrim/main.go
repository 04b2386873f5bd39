// Command crdtrim removes the descriptions of Kubernetes' own types from the CustomResourceDefinitions in a folder and leaves ours, and bounds integers, quantities and times.
// A Pod template with its descriptions makes a CRD of 600 KiB, more than `kubectl apply` can put into its annotation (256 KiB) and much of what Helm can store.
package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// foreign are the properties, anywhere in our types, that hold a type of Kubernetes'.
var foreign = map[string]bool{"template": true, "resources": true, "tolerations": true, "conditions": true}

// quantity is the pattern that Kubernetes generates for a quantity, with an exponent of at most three digits. Its own takes exponents that no client parses, as in 1e1.5, and
// some that take one minutes, as in 1e2147483648. A million digits do so, too.
const (
	quantity    = `^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]{1,3}))?$`
	maxQuantity = 64 // characters
)

// dateTime is what Go reads as a time, if the format finds its date right. The format alone takes small letters, and zones of 99 hours.
const dateTime = `^[0-9-]{10}T([01][0-9]|2[0-3])(:[0-5][0-9]){2}(\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: crdtrim FOLDER")
		os.Exit(2)
	}
	files, err := filepath.Glob(filepath.Join(os.Args[1], "*.yaml"))
	for _, file := range files {
		if err == nil {
			err = trim(file)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "crdtrim:", err)
		os.Exit(1)
	}
}

func trim(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	crd := apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if crd.Kind != "CustomResourceDefinition" {
		return nil
	}
	for _, version := range crd.Spec.Versions {
		trimProperties(version.Schema.OpenAPIV3Schema, false)
	}
	// The status of a definition is the API server's; its zero value is noise in a file to apply.
	out, err := yaml.Marshal(struct {
		APIVersion string                                       `json:"apiVersion"`
		Kind       string                                       `json:"kind"`
		Metadata   map[string]any                               `json:"metadata"`
		Spec       apiextensionsv1.CustomResourceDefinitionSpec `json:"spec"`
	}{crd.APIVersion, crd.Kind, map[string]any{"name": crd.Name, "annotations": crd.Annotations}, crd.Spec})
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, out, 0o644)
}

func trimProperties(schema *apiextensionsv1.JSONSchemaProps, within bool) {
	if schema == nil {
		return
	}
	if within {
		schema.Description = ""
	}
	// What the API server takes and no client can decode, no operator could read, nor any list with it.
	switch {
	case schema.XIntOrString && schema.Pattern != "": // only quantities have one
		schema.Pattern, schema.MaxLength = quantity, ptr.To[int64](maxQuantity)
	case schema.Format == "date-time":
		schema.Pattern = dateTime
	case schema.XIntOrString, schema.Format == "int32": // of an integer, which the API server of Kubernetes 1.34 does not check; bounds are not for the strings
		if schema.Minimum == nil {
			schema.Minimum = ptr.To[float64](math.MinInt32)
		}
		if schema.Maximum == nil {
			schema.Maximum = ptr.To[float64](math.MaxInt32)
		}
	}
	for name, property := range schema.Properties {
		description := property.Description
		trimProperties(&property, within || foreign[name])
		if !within {
			property.Description = description
		}
		schema.Properties[name] = property
	}
	if schema.Items != nil {
		trimProperties(schema.Items.Schema, within)
	}
	if schema.AdditionalProperties != nil {
		trimProperties(schema.AdditionalProperties.Schema, within)
	}
}
