package main

import (
	"sigs.k8s.io/yaml"
)

// pluginDescription is what `kubectl krew info zuulbuild` tells.
const pluginDescription = `Shows, follows and stops the builds that zuulbuild runs as Pods for Zuul v2, and sends builds as Zuul would.
`

// plugin is the manifest of a kubectl plugin, as of krew (https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest).
type plugin struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   map[string]string `json:"metadata"`
	Spec       pluginSpec        `json:"spec"`
}

type pluginSpec struct {
	Version          string           `json:"version"` // with a v, unlike everywhere else
	Homepage         string           `json:"homepage"`
	ShortDescription string           `json:"shortDescription"`
	Description      string           `json:"description"`
	Platforms        []pluginPlatform `json:"platforms"`
}

type pluginPlatform struct {
	Selector pluginSelector `json:"selector"`
	URI      string         `json:"uri"`
	SHA256   string         `json:"sha256"`
	Files    []pluginFile   `json:"files"`
	Bin      string         `json:"bin"`
}

type pluginSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

type pluginFile struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// pluginManifest has krew install the program under the name that makes it the plugin. It must be published as zuulbuild.yaml.
func pluginManifest(version, url string, programs []program) ([]byte, error) {
	manifest := plugin{
		APIVersion: "krew.googlecontainertools.github.com/v1alpha2", Kind: "Plugin", Metadata: map[string]string{"name": "zuulbuild"},
		Spec: pluginSpec{
			Version: "v" + version, Homepage: "https://zuulbuild.dev", ShortDescription: "Look after builds of Zuul v2 jobs", Description: pluginDescription,
		},
	}
	for _, p := range programs {
		manifest.Spec.Platforms = append(manifest.Spec.Platforms, pluginPlatform{
			Selector: pluginSelector{map[string]string{"os": p.platform.OS, "arch": p.platform.Architecture}},
			URI:      url + "/" + p.archive.name, SHA256: p.archive.sum,
			Files: []pluginFile{{"zuulbuild", "kubectl-zuulbuild"}, {"LICENSE", "."}, {licencesFile, "."}},
			Bin:   "kubectl-zuulbuild",
		})
	}
	return yaml.Marshal(manifest)
}
