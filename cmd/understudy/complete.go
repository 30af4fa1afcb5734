package main

// What a shell offers after a tab: the names of guests and hosts come from the
// configuration, of the drills too; a command says in its Use line where they go.

import (
	"strings"

	"github.com/spf13/cobra"

	"understudy/config"
)

// namers list the names that stand for a word of a Use line.
var namers = map[string]func(c *config.Config) []string{
	"GUEST": func(c *config.Config) (names []string) {
		for _, g := range c.Guests {
			names = append(names, g.Name+"\tguest of "+g.Host+" and "+g.Backup)
		}
		return names
	},
	"HOST": hostNames,
}

// hostFlags are the flags whose value is a host's name.
var hostFlags = []string{"host", "at"}

func hostNames(c *config.Config) (names []string) {
	for _, h := range c.Hosts {
		role := "host"
		if h.Witness {
			role = "witness"
		}
		names = append(names, h.Name+"\t"+role+" at "+h.Address)
	}
	return names
}

// complete lets a shell complete every command beneath root.
func (f *common) complete(root *cobra.Command) {
	for _, name := range hostFlags {
		if root.PersistentFlags().Lookup(name) != nil {
			_ = root.RegisterFlagCompletionFunc(name, func(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
				return f.names(hostNames, begun)
			}) // fails for a flag that is not there
		}
	}
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.MarkPersistentFlagFilename("config", "toml")
	f.completeArgs(root)
}

func (f *common) completeArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		f.completeArgs(sub)
	}
	words := strings.Fields(c.Use)[1:]
	if c.ValidArgsFunction != nil || c.HasSubCommands() {
		return
	}
	c.ValidArgsFunction = func(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(words) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		word := strings.Trim(words[len(args)], "[].")
		if word == "FILE" {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return f.names(namers[word], begun)
	}
}

// names are those of the configuration that begin so; none without one.
func (f *common) names(of func(c *config.Config) []string, begun string) (found []string, d cobra.ShellCompDirective) {
	d = cobra.ShellCompDirectiveNoFileComp
	c, err := config.Load(f.config)
	if err != nil || of == nil {
		return nil, d
	}
	for _, n := range of(c) {
		if strings.HasPrefix(n, begun) {
			found = append(found, n)
		}
	}
	return found, d
}
