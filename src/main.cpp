// attnbench: parse, check everything, run, report.
#include "cli/program.hpp"

int main(int argc, char** argv) { return attnbench::cli_main(argc, argv); }
