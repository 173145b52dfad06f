#!/bin/sh
# The one script that a finished tools VM keeps. Lima wants every param to be used: PARAM_csMark says
# whose VM this is.
if getent group docker > /dev/null; then
    usermod -aG docker "{{.User}}"
fi
