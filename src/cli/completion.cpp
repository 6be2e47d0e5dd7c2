// attnbench completion: scripts for bash, zsh and fish, derived from the options that the commands declare.
//
// What a value can be is read from its type name: "{a,b}" are choices, FILE and DIR are paths, SUITE is a
// path or a bundled suite, METHOD, ANALYSIS and DESCRIBED are asked of `attnbench list --names` when Tab is
// pressed.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/program.hpp"
#include "cli/text.hpp"

namespace attnbench {

namespace {

bool takes_value(const CLI::Option& o) { return o.get_items_expected_max() != 0; }

struct Values {
  enum class Kind { none, words, files, folders, listed, listed_and_files } kind = Kind::none;
  std::string words;  ///< choices separated by spaces, or the argument of `attnbench list`
};

Values values_of(const CLI::Option& o) {
  using Kind = Values::Kind;
  if (!takes_value(o)) return {};
  const std::string type = o.get_type_name();
  if (const size_t open = type.find('{'); open != std::string::npos) {
    std::string words = type.substr(open + 1, type.find('}', open) - open - 1);
    for (char& c : words)
      if (c == ',') c = ' ';
    return {Kind::words, words};
  }
  const std::string word = type.substr(0, type.find(':'));
  if (word == "FILE" || word == "RESULTS") return {Kind::files, ""};
  if (word == "DIR") return {Kind::folders, ""};
  if (word == "SUITE") return {Kind::listed_and_files, "suites"};
  if (word == "METHOD") return {Kind::listed, "methods"};
  if (word == "ANALYSIS") return {Kind::listed, "analyses"};
  if (word == "DESCRIBED") return {Kind::listed, ""};
  return {};
}

struct Choice {
  const CLI::Option* option;
  Values values;
};

/// Options of the command itself, or (with an empty name) positional arguments.
std::vector<Choice> options_of(const CLI::App& app, bool positional) {
  std::vector<Choice> out;
  for (const CLI::Option* o : app.get_options()) {
    if (o->get_positional() != positional || o->get_group().empty()) continue;
    out.push_back({o, values_of(*o)});
  }
  return out;
}

std::vector<const CLI::App*> subcommands(const CLI::App& root) {
  std::vector<const CLI::App*> out;
  for (const CLI::App* s : root.get_subcommands([](const CLI::App*) { return true; })) out.push_back(s);
  return out;
}

std::vector<std::string> spellings(const CLI::Option& o) {
  std::vector<std::string> out;
  for (const std::string& s : o.get_snames()) out.push_back("-" + s);
  for (const std::string& l : o.get_lnames()) out.push_back("--" + l);
  return out;
}

std::string join(const std::vector<std::string>& words, const std::string& between) {
  std::string s;
  for (const std::string& w : words) s += (s.empty() ? "" : between) + w;
  return s;
}

/// A script with its @placeholders@ replaced; shell text is too full of braces for format strings.
std::string filled(std::string text, const std::vector<std::pair<std::string, std::string>>& values) {
  for (const auto& [placeholder, value] : values)
    for (size_t at = 0; (at = text.find(placeholder, at)) != std::string::npos; at += value.size())
      text.replace(at, placeholder.size(), value);
  return text;
}

// ---- bash
// ----------------------------------------------------------------------------------------------------------

std::string bash_reply(const Values& v) {
  using Kind = Values::Kind;
  switch (v.kind) {
    case Kind::none:
      return "return";
    case Kind::words:
      return fmt::format("COMPREPLY=($(compgen -W '{}' -- \"$cur\")); return", v.words);
    case Kind::files:
      return "compopt -o filenames; COMPREPLY=($(compgen -f -- \"$cur\")); return";
    case Kind::folders:
      return "compopt -o filenames; COMPREPLY=($(compgen -d -- \"$cur\")); return";
    case Kind::listed:
      return fmt::format("COMPREPLY=($(compgen -W \"$(_attnbench_list {})\" -- \"$cur\")); return", v.words);
    case Kind::listed_and_files:
      return fmt::format(
          "compopt -o filenames; COMPREPLY=($(compgen -W \"$(_attnbench_list {})\" -- \"$cur\") $(compgen -f "
          "-- "
          "\"$cur\")); return",
          v.words);
  }
  return "return";
}

std::string bash_script(const CLI::App& root) {
  std::vector<std::string> names, words, global_words;
  std::string values, flags, positionals;
  const auto add = [&](const std::string& command, const CLI::App& app, std::vector<std::string>& all) {
    for (const Choice& c : options_of(app, false)) {
      std::vector<std::string> patterns;
      for (const std::string& s : spellings(*c.option)) {
        all.push_back(s);
        patterns.push_back(command + ":" + s);
      }
      if (takes_value(*c.option))
        values += fmt::format("    {}) {} ;;\n", join(patterns, " | "), bash_reply(c.values));
    }
  };
  for (const CLI::App* sub : subcommands(root)) {
    names.push_back(sub->get_name());
    words.clear();
    add(sub->get_name(), *sub, words);
    flags += fmt::format("      {}) words='{}' ;;\n", sub->get_name(), join(words, " "));
    for (const Choice& c : options_of(*sub, true))
      positionals += fmt::format("    {}) {} ;;\n", sub->get_name(), bash_reply(c.values));
  }
  add("*", root, global_words);
  return filled(R"script(# bash completion of attnbench; made by `attnbench completion bash`
_attnbench_list() {
  "${COMP_WORDS[0]/#\~/$HOME}" list "$@" --names 2>/dev/null </dev/null
}

_attnbench() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command= words= i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      @commands@) command=${COMP_WORDS[i]}; break ;;
    esac
  done
  case $command:$prev in
@values@  esac
  if [[ $cur == -* ]]; then
    case $command in
@flags@    esac
    COMPREPLY=($(compgen -W "$words @global@" -- "$cur"))
    return
  fi
  case $command in
    '') COMPREPLY=($(compgen -W '@words@' -- "$cur")) ;;
@positionals@  esac
}

complete -F _attnbench attnbench
)script",
                {{"@commands@", join(names, " | ")},
                 {"@values@", values},
                 {"@flags@", flags},
                 {"@global@", join(global_words, " ")},
                 {"@words@", join(names, " ")},
                 {"@positionals@", positionals}});
}

// ---- zsh
// -----------------------------------------------------------------------------------------------------------

/// Inside single quotes, and inside an _arguments specification where ':', '[' and ']' mean something.
std::string zsh_text(const std::string& s) {
  std::string out;
  for (char c : s) {
    if (c == '\'')
      out += "'\\''";
    else if (c == ':' || c == '[' || c == ']' || c == '\\')
      (out += '\\') += c;
    else
      out += c;
  }
  return out;
}

std::string zsh_action(const CLI::Option& o, const Values& v) {
  using Kind = Values::Kind;
  switch (v.kind) {
    case Kind::none:
      return fmt::format(":{}: ", o.get_positional() ? "argument" : "value");
    case Kind::words:
      return fmt::format(":value:({})", v.words);
    case Kind::files:
      return ":file:_files";
    case Kind::folders:
      return ":folder:_files -/";
    case Kind::listed:
      return fmt::format(":name: _attnbench_list {}", v.words);
    case Kind::listed_and_files:
      return fmt::format(":suite: _attnbench_list_or_file {}", v.words);
  }
  return "";
}

std::string zsh_options(const CLI::App& app) {
  std::string out;
  for (const Choice& c : options_of(app, false)) {
    const std::vector<std::string> all = spellings(*c.option);
    const std::string value = takes_value(*c.option) ? zsh_action(*c.option, c.values) : "";
    for (const std::string& s : all)
      out += fmt::format("        '*{}[{}]{}' \\\n", s, zsh_text(c.option->get_description()), value);
  }
  return out;
}

std::string zsh_script(const CLI::App& root) {
  std::string names, cases;
  for (const CLI::App* sub : subcommands(root)) {
    names += fmt::format("    '{}:{}'\n", sub->get_name(), zsh_text(sub->get_description()));
    cases += fmt::format("    {})\n      _arguments \\\n{}{}", sub->get_name(), zsh_options(*sub),
                         zsh_options(root));
    for (const Choice& c : options_of(*sub, true))
      cases += fmt::format("        '{}{}' \\\n", c.option->get_expected_max() > 1 ? "*" : "1",
                           zsh_action(*c.option, c.values));
    cases += "        && return\n      ;;\n";
  }
  return filled(R"script(#compdef attnbench
# zsh completion of attnbench; made by `attnbench completion zsh`
_attnbench_list() {
  local -a names
  names=("${(@f)$(${~_attnbench_program} list "$@" --names 2>/dev/null </dev/null)}")
  compadd -a names
}

_attnbench_list_or_file() {
  _attnbench_list suites
  _files
}

_attnbench() {
  local curcontext=$curcontext state line
  local _attnbench_program=$words[1]
  local -a commands
  commands=(
@commands@  )
  _arguments -C \
@options@        '1:command:->command' \
        '*::argument:->argument' && return
  case $state in
    command)
      _describe command commands
      return
      ;;
  esac
  case $words[1] in
@cases@  esac
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _attnbench "$@"
else
  compdef _attnbench attnbench
fi
)script",
                {{"@commands@", names}, {"@options@", zsh_options(root)}, {"@cases@", cases}});
}

// ---- fish
// ----------------------------------------------------------------------------------------------------------

std::string fish_quoted(const std::string& s) {
  std::string out = "'";
  for (char c : s) {
    if (c == '\'' || c == '\\') out += '\\';
    out += c;
  }
  return out + "'";
}

std::string fish_values(const Values& v) {
  using Kind = Values::Kind;
  switch (v.kind) {
    case Kind::none:
      return " -x";
    case Kind::words:
      return " -x -a " + fish_quoted(v.words);
    case Kind::files:
      return " -r -F";
    case Kind::folders:
      return " -x -a '(__fish_complete_directories)'";
    case Kind::listed:
      return " -x -a " + fish_quoted("(__attnbench_list " + v.words + ")");
    case Kind::listed_and_files:
      return " -r -F -a " + fish_quoted("(__attnbench_list " + v.words + ")");
  }
  return "";
}

std::string fish_option(const Choice& c) {
  std::string out;
  for (const std::string& s : c.option->get_snames()) out += " -s " + s;
  for (const std::string& l : c.option->get_lnames()) out += " -l " + l;
  if (takes_value(*c.option)) out += fish_values(c.values);
  return out + " -d " + fish_quoted(c.option->get_description());
}

std::string fish_script(const CLI::App& root) {
  std::string out =
      "# fish completion of attnbench; made by `attnbench completion fish`\n"
      "function __attnbench_list\n"
      "    set -l program (commandline -opc)[1]\n"
      "    eval $program list $argv --names 2>/dev/null </dev/null\n"
      "end\n\n"
      "complete -c attnbench -f\n";
  for (const Choice& c : options_of(root, false)) out += "complete -c attnbench" + fish_option(c) + "\n";
  for (const CLI::App* sub : subcommands(root)) {
    out += fmt::format("\ncomplete -c attnbench -n __fish_use_subcommand -a {} -d {}\n", sub->get_name(),
                       fish_quoted(sub->get_description()));
    const std::string when =
        fmt::format("complete -c attnbench -n '__fish_seen_subcommand_from {}'", sub->get_name());
    for (const Choice& c : options_of(*sub, false)) out += when + fish_option(c) + "\n";
    for (const Choice& c : options_of(*sub, true))
      if (c.values.kind != Values::Kind::none) out += when + fish_values(c.values) + "\n";
  }
  return out;
}

const bool registered =
    register_command({.name = "completion",
                      .order = 62,
                      .add =
                          [](CLI::App& sub, const GlobalOptions&) {
                            auto shell = std::make_shared<std::string>();
                            sub.add_option("SHELL", *shell, "bash, zsh or fish")
                                ->required()
                                ->check(CLI::IsMember({"bash", "zsh", "fish"}))
                                ->type_name("{bash,zsh,fish}");
                            sub.footer(
                                "Examples:\n"
                                "  source <(attnbench completion bash)\n"
                                "  attnbench completion zsh > ~/.zfunc/_attnbench\n"
                                "  attnbench completion fish > ~/.config/fish/completions/attnbench.fish");
                            return [shell, root = sub.get_parent()] {
                              print_data(*shell == "bash"  ? bash_script(*root)
                                         : *shell == "zsh" ? zsh_script(*root)
                                                           : fish_script(*root));
                              return kDone;
                            };
                          },
                      .summary = "print a completion script for bash, zsh or fish"});

}  // namespace

}  // namespace attnbench
