# Completion scripts come from the installed program itself, so that they can never disagree with it.
if(NOT CMAKE_CROSSCOMPILING)
  foreach(entry IN ITEMS "bash|bash-completion/completions|attnbench" "zsh|zsh/site-functions|_attnbench"
                         "fish|fish/vendor_completions.d|attnbench.fish")
    string(REPLACE "|" ";" entry "${entry}")
    list(GET entry 0 shell)
    list(GET entry 1 folder)
    list(GET entry 2 file)
    set(script ${CMAKE_BINARY_DIR}/generated/completion/${file}.${shell})
    install(CODE "
      file(MAKE_DIRECTORY \"${CMAKE_BINARY_DIR}/generated/completion\")
      execute_process(COMMAND \"$<TARGET_FILE:attnbench>\" completion ${shell} OUTPUT_FILE \"${script}\"
                      RESULT_VARIABLE failed)
      if(failed)
        message(FATAL_ERROR \"attnbench completion ${shell} failed: \${failed}\")
      endif()")
    install(FILES ${script} DESTINATION ${CMAKE_INSTALL_DATADIR}/${folder} RENAME ${file})
  endforeach()
endif()
