package browser

// What a screen reader gets of a page: Chromium's accessibility tree.

import (
	"context"
	"fmt"
	"slices"
)

// Node is one thing that a screen reader tells of.
type Node struct {
	Role, Name, Value string
	Focusable         bool
}

// Tree returns the page's accessibility tree in its order, without what is
// ignored there.
func (p *Page) Tree(ctx context.Context) ([]Node, error) {
	type value struct{ Value any }
	var tree struct {
		Nodes []struct {
			Ignored           bool
			Role, Name, Value value
			Properties        []struct {
				Name  string
				Value value
			}
		}
	}
	if err := p.Do(ctx, "Accessibility.getFullAXTree", nil, &tree); err != nil {
		return nil, err
	}
	var all []Node
	for _, n := range tree.Nodes {
		if n.Ignored {
			continue
		}
		node := Node{Role: textOf(n.Role.Value), Name: textOf(n.Name.Value), Value: textOf(n.Value.Value)}
		for _, p := range n.Properties {
			node.Focusable = node.Focusable || p.Name == "focusable" && p.Value.Value == true
		}
		all = append(all, node)
	}
	return all, nil
}

func textOf(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// controls are the roles of what a person acts upon.
var controls = []string{"button", "link", "textbox", "slider", "checkbox", "combobox", "radio", "switch", "tab", "menuitem", "searchbox", "DisclosureTriangle"}

// Nameless returns those controls, pictures and landmarks that have no name.
func Nameless(nodes []Node) []Node {
	var bad []Node
	for _, n := range nodes {
		named := slices.Contains(controls, n.Role) || n.Role == "image" || n.Role == "img" || n.Role == "region" || n.Role == "dialog" || n.Role == "progressbar" || n.Role == "table"
		if named && n.Name == "" {
			bad = append(bad, n)
		}
	}
	return bad
}
