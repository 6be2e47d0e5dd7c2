#include "cli/help.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "cli/text.hpp"

namespace attnbench {

namespace {

constexpr size_t kWidth = 100;  // of the whole help
constexpr size_t kIndent = 30;  // where descriptions begin: the longest common option fits in front of it

std::string entry(const std::string& left, const std::string& description) {
  std::string out = "  " + left;
  if (display_width(out) + 2 > kIndent)
    out += "\n" + std::string(kIndent, ' ');
  else
    out += std::string(kIndent - display_width(out), ' ');
  return out + wrap(description, kWidth - kIndent, std::string(kIndent, ' ')) + "\n";
}

class Formatter : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const override {
    std::string out = app->get_description() + "\n\nUsage: " + usage(app) + "\n";
    const auto positional = app->get_options([](const CLI::Option* o) { return o->get_positional(); });
    if (!positional.empty()) out += "\nArguments:\n";
    for (const CLI::Option* o : positional) out += entry(o->get_name(true), o->get_description());
    const auto subs = app->get_subcommands([](const CLI::App*) { return true; });
    if (!subs.empty()) out += "\nCommands:\n";
    for (const CLI::App* sub : subs) out += entry(sub->get_name(), sub->get_description());
    out += "\nOptions:\n" + options(app);
    if (app->get_parent()) out += "\nOptions of every command:\n" + options(app->get_parent(), "--help");
    if (!app->get_footer().empty()) out += "\n" + app->get_footer() + "\n";
    return out;
  }

 private:
  static std::string usage(const CLI::App* app) {
    if (!app->get_parent()) return "attnbench [options] COMMAND ...";
    std::string out = "attnbench " + app->get_name() + " [options]";
    for (const CLI::Option* o : app->get_options([](const CLI::Option* p) { return p->get_positional(); })) {
      std::string word = o->get_name(true);
      if (o->get_expected_max() > 1) word += " ...";
      out += o->get_required() ? " " + word : " [" + word + "]";
    }
    return out;
  }

  static std::string options(const CLI::App* app, const std::string& without = {}) {
    std::string out;
    for (const CLI::Option* o : app->get_options([](const CLI::Option* p) { return p->nonpositional(); })) {
      if (o->get_group().empty() || o->get_name() == without) continue;
      const std::string word = option_value_word(*o);
      out += entry(option_names(*o) + (word.empty() ? "" : " " + word), o->get_description());
    }
    return out;
  }
};

}  // namespace

std::string option_names(const CLI::Option& option) {
  std::string out;
  for (const std::string& s : option.get_snames()) out += (out.empty() ? "-" : ", -") + s;
  for (const std::string& l : option.get_lnames()) out += (out.empty() ? "--" : ", --") + l;
  return out;
}

std::string option_value_word(const CLI::Option& option) {
  if (option.get_items_expected_max() == 0) return "";
  const std::string type = option.get_type_name();
  // "WHEN:{auto,always}" is shown as its choices; "TEXT:PATH(existing)" and its like as their first word.
  const size_t open = type.find('{');
  if (open != std::string::npos) {
    std::string choices = type.substr(open + 1, type.find('}', open) - open - 1);
    for (char& c : choices)
      if (c == ',') c = '|';
    return choices;
  }
  const std::string word = type.substr(0, type.find(':'));
  return option.get_expected_max() > 1 && !option.get_positional() ? word + " ..." : word;
}

std::shared_ptr<CLI::FormatterBase> help_formatter() { return std::make_shared<Formatter>(); }

}  // namespace attnbench
