package status

// openapi.yaml is held against the handlers, both ways: every route is
// described, at its level, and every described one exists; its schemas are those
// of the Go types; and whatever the tests are answered has to fit its schema.

import (
	"bytes"
	"encoding"
	"encoding/json"
	"flag"
	"fmt"
	"mime"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"understudy/bubble"
	"understudy/config"
	"understudy/drill"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status/samples"
	"understudy/strike"
)

var update = flag.Bool("update", false, "write the schemas in openapi.yaml, METRICS.md and the golden files anew")

// described are the Go types of what is sent and received.
var described = []reflect.Type{
	reflect.TypeFor[Problem](), reflect.TypeFor[Checks](), reflect.TypeFor[RoleHealth](),
	reflect.TypeFor[Report](), reflect.TypeFor[Guests](), reflect.TypeFor[Cluster](), reflect.TypeFor[EventList](),
	reflect.TypeFor[ownership.Guest](), reflect.TypeFor[primary.VerifyResult](),
	reflect.TypeFor[host.SaveRequest](), reflect.TypeFor[host.SaveResult](),
	reflect.TypeFor[host.RestoreRequest](), reflect.TypeFor[host.RestoreResult](), reflect.TypeFor[host.VerifyFileResult](),
	reflect.TypeFor[Clock](), reflect.TypeFor[DrillBegun](), reflect.TypeFor[drill.Spec](), reflect.TypeFor[drill.List](), reflect.TypeFor[drill.Report](),
	reflect.TypeFor[drill.Plan](), reflect.TypeFor[drill.Forecast](),
	reflect.TypeFor[host.FailoverCost](), reflect.TypeFor[host.Fences](), reflect.TypeFor[host.FailoverRequest](),
	reflect.TypeFor[FileRequest](), reflect.TypeFor[FileRemoved](), reflect.TypeFor[HostList](), reflect.TypeFor[Access](),
	reflect.TypeFor[bubble.Spec](), reflect.TypeFor[bubble.Result](), reflect.TypeFor[BubbleEnds](),
	reflect.TypeFor[strike.Spec](), reflect.TypeFor[strike.Struck](), reflect.TypeFor[StrikeList](),
	reflect.TypeFor[ReplaceRequest](), reflect.TypeFor[RunningConfig](), reflect.TypeFor[ConfigRequest](), reflect.TypeFor[config.Change](),
	reflect.TypeFor[UpgradeRequest](), reflect.TypeFor[Upgrade](), reflect.TypeFor[samples.Series](),
}

// schemas collects the schemas of types and of all they hold, by name.
type schemas map[string]any

func nameOf(t reflect.Type) string {
	pkg := t.PkgPath()[strings.LastIndexByte(t.PkgPath(), '/')+1:]
	if pkg == "status" {
		return t.Name()
	}
	return pkg + "." + t.Name()
}

// of returns the schema of a type: a reference if it is a struct.
func (s schemas) of(t reflect.Type) map[string]any {
	is := func(i reflect.Type) bool { return t.Implements(i) || reflect.PointerTo(t).Implements(i) }
	switch {
	case t == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[json.RawMessage]():
		return map[string]any{"type": "object"}
	case is(reflect.TypeFor[json.Marshaler]()):
		return map[string]any{} // it writes itself
	case is(reflect.TypeFor[encoding.TextMarshaler]()):
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Int, reflect.Int64:
		return map[string]any{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return map[string]any{"type": "integer", "minimum": 0}
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.Slice, reflect.Array:
		return map[string]any{"type": []any{"array", "null"}, "items": s.of(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": []any{"object", "null"}, "additionalProperties": s.of(t.Elem())}
	case reflect.Struct:
		name := nameOf(t)
		if _, there := s[name]; !there {
			s[name] = nil // it may hold itself
			properties, required := map[string]any{}, []any{}
			s.fields(t, properties, &required)
			slices.SortFunc(required, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			s[name] = map[string]any{"type": "object", "additionalProperties": false, "properties": properties, "required": required}
		}
		return map[string]any{"$ref": "#/components/schemas/" + name}
	}
	panic("no schema of " + t.String())
}

func (s schemas) fields(t reflect.Type, properties map[string]any, required *[]any) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			s.fields(f.Type, properties, required)
			continue
		case !f.IsExported() || name == "-":
			continue
		case name == "":
			name = f.Name
		}
		properties[name] = s.of(f.Type)
		if !strings.Contains(options, "omit") {
			*required = append(*required, name)
		}
	}
}

// plain is v as JSON has it.
func plain(t *testing.T, v any) any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func readYAML(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestSchemasAreThoseOfTheGoTypes(t *testing.T) {
	made := schemas{}
	for _, of := range described {
		made.of(of)
	}
	const mark = "\n  schemas:\n"
	if *update {
		hand, _, found := strings.Cut(string(openAPI), mark)
		if !found {
			t.Fatalf("openapi.yaml has no line %q", mark)
		}
		var b bytes.Buffer
		e := yaml.NewEncoder(&b)
		e.SetIndent(2)
		if err := e.Encode(map[string]any{"components": map[string]any{"schemas": map[string]any(made)}}); err != nil {
			t.Fatal(err)
		}
		_, generated, _ := strings.Cut(b.String(), mark)
		if err := os.WriteFile("openapi.yaml", []byte(hand+mark+generated), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Log("openapi.yaml is written anew")
		return
	}
	components := readYAML(t, openAPI)["components"].(map[string]any)
	got, want := plain(t, components["schemas"]), plain(t, map[string]any(made))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the schemas in openapi.yaml are not those of the Go types: go test ./status -run TestSchemas -update")
	}
}

func TestEveryRouteIsDescribedAndTheOtherWayRound(t *testing.T) {
	routes := map[string]Level{}
	for _, r := range NewServer(Sources{Operations: newFake(), Report: func() Report { return Report{} }}).routes() {
		routes[strings.ReplaceAll(r.pattern, "...}", "}")] = r.need // OpenAPI has no word for the rest of a path
	}
	doc := readYAML(t, openAPI)
	if doc["info"].(map[string]any)["version"] != Version {
		t.Errorf("openapi.yaml is of version %v, this is %s", doc["info"].(map[string]any)["version"], Version)
	}
	for path, item := range doc["paths"].(map[string]any) {
		item := item.(map[string]any)
		for method, op := range item {
			if method == "parameters" {
				continue
			}
			op := op.(map[string]any)
			pattern := strings.ToUpper(method) + " " + path
			need, there := routes[pattern]
			switch {
			case !there:
				t.Errorf("%s is described, and there is no such route", pattern)
			case op["x-level"] != need.String():
				t.Errorf("%s needs %q, described as %v", pattern, need, op["x-level"])
			}
			delete(routes, pattern)
			named := strings.Contains(path, "{")
			if _, has := item["parameters"]; has != named {
				t.Errorf("%s: its parameters do not fit its path", pattern)
			}
		}
	}
	for pattern := range routes {
		t.Errorf("%s is not described", pattern)
	}
}

// contract checks answers against the document.
type contract struct {
	doc      map[string]any
	compiler *jsonschema.Compiler
}

var loadContract = sync.OnceValues(func() (*contract, error) {
	var doc map[string]any
	if err := yaml.Unmarshal(openAPI, &doc); err != nil {
		return nil, err
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	resource, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := &contract{doc: doc, compiler: jsonschema.NewCompiler()}
	return c, c.compiler.AddResource("file:///openapi.yaml", resource)
})

// fits reports an answer that the document does not describe. pattern is the
// route, "" if there is none.
func fits(t *testing.T, pattern string, code int, header http.Header, body []byte) {
	t.Helper()
	c, err := loadContract()
	if err != nil {
		t.Fatal(err)
	}
	kind, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		t.Errorf("%s: %d with content type %q: %v", pattern, code, header.Get("Content-Type"), err)
		return
	}
	pointer := "/components/responses/Problem"
	if pattern != "" {
		method, path, _ := strings.Cut(pattern, " ")
		at := []string{"paths", strings.ReplaceAll(path, "...}", "}"), strings.ToLower(method), "responses"}
		responses := dig(c.doc, at...)
		status := fmt.Sprint(code)
		if dig(responses, status) == nil {
			status = "default"
		}
		if code == http.StatusOK && status == "default" {
			t.Errorf("%s: %d is not described", pattern, code)
		}
		at = append(at, status)
		for i := range at {
			at[i] = strings.NewReplacer("~", "~0", "/", "~1").Replace(at[i])
		}
		pointer = "/" + strings.Join(at, "/")
		if ref, ok := dig(responses, status, "$ref").(string); ok {
			pointer = strings.TrimPrefix(ref, "#")
		}
	}
	found := dig(c.doc, unescape(pointer)...)
	if found != nil && dig(found, "content") == nil {
		return // whatever another host answers
	}
	if dig(found, "content", kind, "schema") == nil {
		t.Errorf("%s: %d with content type %q is not described", pattern, code, kind)
		return
	}
	if !strings.HasSuffix(kind, "json") {
		return // text
	}
	schema, err := c.compiler.Compile("file:///openapi.yaml#" + escape(pointer) + "/content/" + strings.ReplaceAll(kind, "/", "~1") + "/schema")
	if err != nil {
		t.Errorf("%s: %v", pattern, err)
		return
	}
	for line := range bytes.Lines(body) {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			t.Errorf("%s: %d with %q: %v", pattern, code, line, err)
			return
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %d with %s\nis not as described: %v", pattern, code, line, err)
		}
		if result, ok := v.(map[string]any)["result"]; ok && kind == "application/x-ndjson" {
			method, path, _ := strings.Cut(pattern, " ")
			ref, _ := dig(c.doc, "paths", path, strings.ToLower(method), "x-result", "$ref").(string)
			of, err := c.compiler.Compile("file:///openapi.yaml" + ref)
			if err == nil {
				err = of.Validate(result)
			}
			if err != nil {
				t.Errorf("%s: the result %v is not as described (%s): %v", pattern, result, ref, err)
			}
		}
	}
}

// escape makes a JSON pointer fit for a URL's fragment.
func escape(pointer string) string {
	return strings.NewReplacer("{", "%7B", "}", "%7D").Replace(pointer)
}

func unescape(pointer string) []string {
	parts := strings.Split(strings.TrimPrefix(pointer, "/"), "/")
	for i := range parts {
		parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(parts[i])
	}
	return parts
}

// dig goes down into nested maps; nil if there is nothing.
func dig(v any, path ...string) any {
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}
