package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// environmentPrefix begins the environment variables of options: that of --max-builds is ZUULBUILD_OPERATOR_MAX_BUILDS. It is not ZUULBUILD_ alone,
// because Kubernetes gives a Pod variables for the Services around it: one called zuulbuild makes ZUULBUILD_PORT and ZUULBUILD_SERVICE_HOST. One called
// zuulbuild-operator makes variables with this very prefix, but such as serviceLink matches, and the variable of an option never does.
const environmentPrefix = "ZUULBUILD_OPERATOR_"

// serviceLink matches the variables Kubernetes makes of Services.
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// variable is the environment variable of an option.
func variable(option string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(option, "-", "_"))
}

// source is where the value of an option comes from. A greater one overrides a lesser one.
type source int

const (
	fromDefault source = iota
	fromFile
	fromEnvironment
	fromFlag
)

func (s source) String() string { return [...]string{"default", "file", "environment", "flag"}[s] }

// settings are the options of a command, with where their values come from. An option is a flag, an environment variable, and a key in the file of
// --config; docs/configuration.md has them all.
type settings struct {
	flags   *pflag.FlagSet
	file    string // of --config, or empty
	sources map[string]source
	servers json.RawMessage // the list in the file that is no option; nil for none
}

// loadSettings gives the flags that are not on the command line the values of the environment or else of the file. Every fault is returned, with where
// it is; the option then keeps the value it had. What is overridden must be right all the same. Warnings are about what may be a mistake.
func loadSettings(flags *pflag.FlagSet, environ []string) (s *settings, warnings []string, faults []error) {
	s = &settings{flags: flags, sources: map[string]source{}}
	flags.Visit(func(flag *pflag.Flag) { s.sources[flag.Name] = fromFlag })
	warnings, faults = s.readEnvironment(environ)
	if s.file = flags.Lookup("config").Value.String(); s.file != "" {
		faults = append(faults, s.readFile()...)
	}
	return s, warnings, faults
}

// where a person finds the value of an option.
func (s *settings) where(option string) string {
	switch s.sources[option] {
	case fromFile:
		return s.file + ": " + option
	case fromEnvironment:
		return variable(option)
	default:
		return "--" + option
	}
}

// eachOption calls do for each option, by name.
func eachOption(flags *pflag.FlagSet, do func(*pflag.Flag)) {
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Name != "help" {
			do(flag)
		}
	})
}

// readEnvironment takes variables that are empty for variables that are not set.
func (s *settings) readEnvironment(environ []string) (warnings []string, faults []error) {
	options := map[string]*pflag.Flag{}
	eachOption(s.flags, func(flag *pflag.Flag) { options[variable(flag.Name)] = flag })
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, environmentPrefix) || serviceLink.MatchString(name) || text == "" {
			continue
		}
		option := options[name]
		if option == nil {
			warnings = append(warnings, fmt.Sprintf("the environment variable %s is of no option", name))
			continue
		}
		values := []string{text}
		if _, isList := option.Value.(pflag.SliceValue); isList {
			values = strings.Split(text, ",")
		}
		if err := s.set(option, values, fromEnvironment); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
		}
	}
	return warnings, faults
}

func (s *settings) readFile() (faults []error) {
	content, err := os.ReadFile(s.file)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", s.where("config"), err)}
	}
	document, err := yaml.YAMLToJSONStrict(content)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", s.file, err)}
	}
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(document, &entries); err != nil {
		return []error{fmt.Errorf("%s: options were expected, such as `max-builds: 100`, not %.40s", s.file, document)}
	}
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		if key == "servers" {
			s.servers = entries[key]
		} else if err := s.setFromFile(key, entries[key]); err != nil {
			faults = append(faults, fmt.Errorf("%s: %s: %w", s.file, key, err))
		}
	}
	return faults
}

func (s *settings) setFromFile(key string, value json.RawMessage) error {
	options := map[string]*pflag.Flag{}
	hint := ""
	plain := func(name string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(name)) }
	eachOption(s.flags, func(flag *pflag.Flag) {
		if options[flag.Name] = flag; plain(flag.Name) == plain(key) {
			hint = "; " + flag.Name + " is one"
		}
	})
	switch option := options[key]; {
	case option == nil:
		return errors.New("there is no such option" + hint)
	case key == "config":
		return errors.New("one file cannot name another")
	default:
		values, err := decodeValues(option.Value.Type(), value)
		if err != nil {
			return err
		}
		return s.set(option, values, fromFile)
	}
}

// set gives an option a value, or several if it is a list, unless it has one from a greater source.
func (s *settings) set(option *pflag.Flag, values []string, from source) error {
	before := valuesOf(option)
	if err := assign(option, values); err != nil {
		_ = assign(option, before)
		return fmt.Errorf("%s was expected, not %q", expected[option.Value.Type()], values[0])
	}
	if s.sources[option.Name] > from {
		return assign(option, before)
	}
	s.sources[option.Name] = from
	return nil
}

func assign(option *pflag.Flag, values []string) error {
	if list, ok := option.Value.(pflag.SliceValue); ok {
		return list.Replace(values)
	}
	return option.Value.Set(values[0])
}

func valuesOf(option *pflag.Flag) []string {
	if list, ok := option.Value.(pflag.SliceValue); ok {
		return list.GetSlice()
	}
	return []string{option.Value.String()}
}

// expected is what the types of flags take.
var expected = map[string]string{
	"bool":        "true or false",
	"duration":    "a duration such as 90s or 1h30m",
	"int":         "a whole number",
	"string":      "a text (in quotes, if it looks like something else)",
	"stringArray": "a list of texts",
}

// decodeValues turns JSON into what a flag of a type takes.
func decodeValues(kind string, value json.RawMessage) ([]string, error) {
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber()
	var decoded any
	if err := decoder.Decode(&decoded); err != nil {
		return nil, err
	}
	switch decoded := decoded.(type) {
	case bool:
		if kind == "bool" {
			return []string{strconv.FormatBool(decoded)}, nil
		}
	case json.Number:
		if kind == "int" {
			return []string{decoded.String()}, nil
		}
	case string:
		if kind == "string" || kind == "duration" {
			return []string{decoded}, nil
		}
	case []any:
		texts := []string{}
		for _, item := range decoded {
			if text, ok := item.(string); ok {
				texts = append(texts, text)
			}
		}
		if kind == "stringArray" && len(texts) == len(decoded) {
			return texts, nil
		}
	}
	return nil, fmt.Errorf("%s was expected, not %s", expected[kind], value)
}
