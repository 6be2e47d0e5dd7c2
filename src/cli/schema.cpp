// attnbench schema: the JSON schemas of suites and results.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/program.hpp"
#include "cli/text.hpp"
#include "report/schemas.hpp"

namespace attnbench {

namespace {

const bool registered =
    register_command({.name = "schema",
                      .order = 61,
                      .add =
                          [](CLI::App& sub, const GlobalOptions&) {
                            auto which = std::make_shared<std::string>();
                            std::vector<std::string> words;
                            std::string choices;
                            for (const auto& [name, text] : schemas()) {
                              words.push_back(name);
                              choices += (choices.empty() ? "" : ",") + name;
                            }
                            sub.add_option("NAME", *which, "which schema: " + choices)
                                ->required()
                                ->check(CLI::IsMember(words))
                                ->type_name("{" + choices + "}");
                            sub.footer("Examples:\n  attnbench schema results > results.schema.json");
                            return [which] {
                              const std::string text(schemas().at(*which));
                              print_data(text.ends_with('\n') ? text : text + "\n");
                              return kDone;
                            };
                          },
                      .summary = "print the JSON schema of suites or results"});

}  // namespace

}  // namespace attnbench
