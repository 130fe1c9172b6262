// The alerts and the board as a mixin (monitoring.mixins.dev). Both are plain files, which
// can be used without jsonnet.
{
  prometheusAlerts+:: std.parseYaml(importstr 'rules.yaml'),
  grafanaDashboards+:: {
    'understudy.json': import '../grafana/understudy.json',
  },
}
