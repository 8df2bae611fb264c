"""The custom resources as pydantic models, the only source of the CRDs. May import pydantic and
kube_custom_resource only.
"""
