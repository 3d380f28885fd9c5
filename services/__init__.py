"""The processes of Sapwood, one package each. A service never imports another one."""
