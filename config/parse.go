package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const (
	// maxFile bounds a file, in bytes.
	maxFile = 1 << 20
	// maxDepth bounds how deep brackets are nested: the TOML reader calls
	// itself for each level. A good file has three.
	maxDepth = 256
)

// Load reads, completes and checks the file at path. Its errors begin with the
// path.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse reads, completes and checks a configuration. An error of its form names
// line and column; an error of its meaning is a *Invalid with every problem.
func Parse(data []byte) (*Config, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("the configuration is larger than %d bytes", maxFile)
	}
	if depth(data) > maxDepth {
		return nil, fmt.Errorf("brackets are nested more than %d deep", maxDepth)
	}
	var c Config
	decoder := toml.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return nil, readable(err)
	}
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		return nil, readable(err)
	}
	if bare := bareNumbers("", tree, reflect.TypeFor[Config]()); len(bare) > 0 {
		return nil, &Invalid{bare}
	}
	c.setDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &c, nil
}

// bareNumbers finds values that need a unit, or a form of their own, and are
// not written as strings. The TOML reader takes such a number as it is, and
// `lease = 1` would be a lease of a nanosecond.
func bareNumbers(key string, value any, as reflect.Type) []Problem {
	if reflect.PointerTo(as).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		if _, ok := value.(string); !ok {
			return []Problem{{key, fmt.Sprintf("%.40q has no unit or is no string; write it in quotes, like \"1s\" or \"512MiB\"", fmt.Sprint(value))}}
		}
		return nil
	}
	var found []Problem
	switch value := value.(type) {
	case map[string]any:
		if as.Kind() != reflect.Struct {
			return nil
		}
		for _, field := range reflect.VisibleFields(as) {
			name := field.Tag.Get("toml")
			for written, inner := range value {
				if strings.EqualFold(written, name) { // as the TOML reader has it
					found = append(found, bareNumbers(strings.TrimPrefix(key+"."+name, "."), inner, field.Type)...)
				}
			}
		}
	case []any:
		for i, inner := range value {
			if as.Kind() == reflect.Slice && len(found) < maxTold {
				found = append(found, bareNumbers(fmt.Sprintf("%s[%d]", key, i), inner, as.Elem())...)
			}
		}
	}
	return found
}

// depth is an upper bound on how deep brackets are nested; those in strings and
// comments count as well.
func depth(data []byte) int {
	now, deepest := 0, 0
	for _, b := range data {
		switch b {
		case '[', '{':
			now++
			deepest = max(deepest, now)
		case ']', '}':
			now = max(now-1, 0)
		}
	}
	return deepest
}

// maxUnknown bounds how many unknown keys are told at once.
const maxUnknown = 20

// readable turns the reader's error into one that says where.
func readable(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var all []error
		for i := range strict.Errors {
			if i == maxUnknown {
				all = append(all, fmt.Errorf("and %d more", len(strict.Errors)-i))
				break
			}
			line, column := strict.Errors[i].Position()
			all = append(all, fmt.Errorf("line %d, column %d: unknown key %.100s", line, column, strings.Join(strict.Errors[i].Key(), ".")))
		}
		return errors.Join(all...)
	}
	var malformed *toml.DecodeError
	if errors.As(err, &malformed) {
		line, column := malformed.Position()
		return fmt.Errorf("line %d, column %d: %s", line, column, strings.TrimPrefix(malformed.Error(), "toml: "))
	}
	return err
}
